"""The Mandarin text of the miniatures: espeak-ng reads its characters, words and accents."""

from __future__ import annotations

import multiprocessing
import re
import sys
from collections import defaultdict

import numpy as np
import pytest

from tests.unit.tools import mini

pytest.importorskip(
    "espeakng_loader", reason="the miniatures are spoken by espeak-ng: pip install espeakng-loader"
)

# What a syllable may consist of: phonemes of espeak-ng's tables `cmn` and `base1`.
PHONEMES = (
    "@ a e i o u t p k n l j N tS; f s. S; ph th kh tS;h ts tsh ts. ts.h A ai Au @r E ei i[ i. iA "
    "iAu iE io iou o- ou "
    "ong uA ua uai u@ uei uo y yu y& yE y@ yi m s z z. w X h r/ S tS tSh v"
)
TONES = "11 21 22 33 35 44 51 53 55 214"


@pytest.fixture(autouse=True)
def _find_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(mini.TOOLS))


@pytest.fixture
def espeak(_find_generator):
    from mini_corpus.espeak import Espeak

    synthesiser = Espeak(seed=1)
    synthesiser.set_voice("cmn", "m1")
    return synthesiser


@pytest.fixture
def words() -> list[str]:
    from mini_corpus import mandarin, sentences

    return sentences.vocabulary(mandarin.RULES, mandarin.WORDS)


def test_espeak_reads_every_character_as_one_mandarin_syllable(espeak, words) -> None:
    characters = sorted(set("".join(words)))
    assert len(characters) >= 400
    # For an unknown character, espeak-ng gives an English name in round brackets.
    unread = [
        c
        for c in characters
        if len(re.findall(r"\d+", espeak.mnemonics(c))) != 1 or "(" in espeak.mnemonics(c)
    ]
    assert unread == []
    assert "(en)" in espeak.mnemonics("熊")
    wrong = [word for word in words if len(re.findall(r"\d+", espeak.mnemonics(word))) != len(word)]
    assert wrong == []


def test_words_with_several_readings_have_the_right_one(espeak) -> None:
    for word, reading in {
        "银行": "ji35n XA35N",
        "旅行": "ly214 S;i35N",
        "音乐": "ji55n jyE51",
        "睡觉": "s.wei51 tS;jAu51",
        "觉得": "tS;yE35 t@11",
        "重庆": "ts.hong35 tS;hi51N",
        "成都": "ts.h@35N tu55",
        "长沙": "ts.hA35N s.A55",
    }.items():
        assert re.sub("['_|, ]", "", espeak.mnemonics(word)) == reading.replace(" ", ""), word


def test_no_two_words_sound_alike_and_few_differ_by_tone_alone(espeak, words) -> None:
    toned, toneless = defaultdict(list), defaultdict(list)
    for word in words:
        sound = re.sub("['_|, ]", "", espeak.mnemonics(word))
        toned[sound].append(word)
        toneless[re.sub(r"\d+", " ", sound)].append(word)
    assert [same for same in toned.values() if len(same) > 1] == []
    close = [same for same in toneless.values() if len(same) > 1]
    assert sum(map(len, close)) <= 0.1 * len(words), close


def test_every_accent_is_made_of_sounds_that_espeak_has(espeak, words) -> None:
    from mini_corpus import accents

    known = "|".join(
        map(re.escape, sorted([*PHONEMES.split(), *TONES.split()], key=len, reverse=True))
    )
    syllables = re.compile(rf"(?:{known}|[', ])+")
    for accent in accents.MANDARIN:
        for word in words:
            said = accents.spoken(word, accent, espeak)
            inner = said.removeprefix("[[").removesuffix("]]")
            assert syllables.fullmatch(inner), f"{accent}: {word} is {said}"
            assert len(re.findall(r"\d+", inner)) == len(word), f"{accent}: {word} is {said}"


def test_what_is_said_by_phonemes_sounds_like_the_text() -> None:
    texts = ("今天上海下雨", "老师去图书馆", "苹果很新", "张伟喜欢唱歌")
    # In its own process, since espeak-ng can be initialised only once.
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        likeness = pool.apply(likeness_of_phonemes_and_text, (texts,))
    assert list(likeness.argmax(axis=1)) == list(range(len(texts))), likeness


def likeness_of_phonemes_and_text(texts: tuple[str, ...]) -> np.ndarray:
    """Correlation of spectrograms: what accents say for text i, what espeak-ng says for text j."""
    sys.path.insert(0, str(mini.TOOLS))
    from mini_corpus import accents
    from mini_corpus.espeak import Espeak

    espeak = Espeak(seed=1)
    espeak.set_voice("cmn", "m1")

    def picture(said: str) -> np.ndarray:
        """60 frames, whatever the length."""
        signal = espeak.speak(said, words_per_minute=220, pitch=50, pitch_range=60)
        starts = np.linspace(0, signal.size - 1024, 60).astype(int)
        frames = np.array([signal[start : start + 1024] for start in starts])
        return np.log(1e-3 + np.abs(np.fft.rfft(frames))[:, :256]).ravel()

    spoken = [picture(accents.spoken(text, "Mandarin", espeak)) for text in texts]
    written = [picture(text) for text in texts]
    return np.corrcoef(spoken, written)[: len(texts), len(texts) :]


def test_an_accent_changes_tones_and_sounds_as_its_table_says() -> None:
    from mini_corpus.accents import SUBDIALECTS

    standard = "s.'u55 n'a35n ts.h'i.55 w'A214N"
    assert SUBDIALECTS["Mandarin"].change(standard) == standard
    assert SUBDIALECTS["Southwestern"].change("n'a35n s.'i.51") == "l'a21n s'i[214"
    assert SUBDIALECTS["Zhongyuan"].change("s.'u55 tS;'iou214") == "f'u21 ts'iou53"
    assert SUBDIALECTS["Lan-Yin"].change("l'a35n X'A35N") == "n'E53N X'A53N"
    assert SUBDIALECTS["Northeastern"].change("z.'o-51") == "j'@53"
