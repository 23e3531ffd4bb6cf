"""LibriSpeech's miniature: layout, disjoint sets, reproducible files, properties of the audio."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.unit.tools import mini

pytest.importorskip(
    "espeakng_loader",
    reason="the miniature needs espeak-ng: pip install espeakng-loader",
)

SPLITS = ("train-clean-100", "dev-clean", "test-clean", "test-other")
HELD_OUT = SPLITS[1:]


@pytest.fixture(autouse=True)
def _find_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(mini.TOOLS))


def make(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return mini.make("librispeech", out, *options)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("mini")
    finished = make(out, "--size", "tiny", "--nj", "2")
    assert finished.returncode == 0, finished.stderr
    return out / "LibriSpeech"


def transcripts(folder: Path) -> dict[str, str]:
    """Utterance id to text, of all chapters below `folder`."""
    lines = [line for file in folder.rglob("*.trans.txt") for line in file.read_text().splitlines()]
    return dict(line.split(" ", 1) for line in lines)


def speakers(corpus: Path) -> dict[str, list[tuple[str, str]]]:
    """Set to its speakers' (id, voice variant), from SPEAKERS.TXT."""
    rows: dict[str, list[tuple[str, str]]] = {split: [] for split in SPLITS}
    for line in (corpus / "SPEAKERS.TXT").read_text().splitlines():
        if not line.startswith(";"):
            number, _sex, split, _minutes, name = (field.strip() for field in line.split("|"))
            rows[split].append((number, re.search(r"\+(\S+),", name).group(1)))
    return rows


def test_every_utterance_has_its_audio_where_librispeech_has_it(corpus: Path) -> None:
    for split in SPLITS:
        texts = transcripts(corpus / split)
        assert texts
        expected = set()
        for utterance in texts:
            reader, chapter, index = utterance.split("-")
            assert re.fullmatch(r"\d{4}", index)
            expected.add(corpus / split / reader / chapter / f"{utterance}.flac")
            assert (corpus / split / reader / chapter / f"{reader}-{chapter}.trans.txt").is_file()
        assert set((corpus / split).rglob("*.flac")) == expected


def test_the_tables_list_every_speaker_and_chapter_of_the_folders(corpus: Path) -> None:
    for split, rows in speakers(corpus).items():
        assert {number for number, _ in rows} == {
            folder.name for folder in (corpus / split).iterdir()
        }
    chapters = [
        line.split("|")
        for line in (corpus / "CHAPTERS.TXT").read_text().splitlines()
        if line[0] != ";"
    ]
    listed = {
        (split.strip(), reader.strip(), chapter.strip())
        for chapter, reader, _, split, *_ in chapters
    }
    on_disk = {(f.parts[-4], f.parts[-3], f.parts[-2]) for f in corpus.rglob("*.trans.txt")}
    assert listed == on_disk


def test_the_readme_says_that_the_corpus_is_synthesised_and_by_which_command(corpus: Path) -> None:
    readme = (corpus / "README.TXT").read_text()
    assert "synthesised" in readme
    assert "make_mini_corpus.py --layout librispeech --size tiny --seed 0" in readme


def test_one_process_writes_the_same_bytes_as_two(corpus: Path, tmp_path: Path) -> None:
    assert make(tmp_path, "--size", "tiny", "--nj", "1").returncode == 0
    files = sorted(file.relative_to(corpus) for file in corpus.rglob("*") if file.is_file())
    other = tmp_path / "LibriSpeech"
    assert sorted(file.relative_to(other) for file in other.rglob("*") if file.is_file()) == files
    assert [
        str(file) for file in files if (corpus / file).read_bytes() != (other / file).read_bytes()
    ] == []


def test_another_seed_replaces_the_corpus_by_other_sentences(tmp_path: Path) -> None:
    make(tmp_path, "--size", "tiny", "--seed", "1")
    first = transcripts(tmp_path)
    finished = make(tmp_path, "--size", "tiny", "--seed", "2")
    assert "other settings (seed)" in finished.stdout
    assert set(transcripts(tmp_path).values()) != set(first.values())


def test_the_same_settings_again_leave_the_corpus_alone(corpus: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in corpus.rglob("*")}
    finished = make(corpus.parent, "--size", "tiny")
    assert "nothing to do" in finished.stdout
    assert {file: file.stat().st_mtime_ns for file in corpus.rglob("*")} == before


def test_no_sentence_and_no_speaker_is_in_two_sets(corpus: Path) -> None:
    texts = [text for split in SPLITS for text in transcripts(corpus / split).values()]
    assert len(texts) == len(set(texts))
    numbers = [number for rows in speakers(corpus).values() for number, _ in rows]
    assert len(numbers) == len(set(numbers))


def test_only_the_voices_of_test_other_are_new_to_training(corpus: Path) -> None:
    voices = {split: {voice for _, voice in rows} for split, rows in speakers(corpus).items()}
    assert voices["dev-clean"] | voices["test-clean"] <= voices["train-clean-100"]
    assert not voices["test-other"] & voices["train-clean-100"]


def test_held_out_words_all_occur_in_training(corpus: Path) -> None:
    words = {split: set(" ".join(transcripts(corpus / split).values()).split()) for split in SPLITS}
    assert set().union(*(words[split] for split in HELD_OUT)) <= words["train-clean-100"]


def test_transcripts_are_short_sentences_of_capital_letters_apostrophes_and_spaces(
    corpus: Path,
) -> None:
    for text in transcripts(corpus).values():
        assert re.fullmatch(r"[A-Z']+( [A-Z']+){2,13}", text), text


def test_every_recording_is_16_khz_mono_neither_clipped_nor_silent(corpus: Path) -> None:
    for file in corpus.rglob("*.flac"):
        info = soundfile.info(file)
        assert (info.samplerate, info.channels, info.subtype) == (16000, 1, "PCM_16")
        samples, _ = soundfile.read(file, dtype="float64")
        assert 0.5 < samples.size / 16000 < 10
        assert np.abs(samples).max() < 0.96
        assert -45 < 10 * np.log10(np.mean(samples**2)) < -12
        # Digital silence, which no microphone delivers, would show as long runs of zeros.
        assert np.mean(samples == 0) < 0.5


def test_a_folder_that_the_tool_did_not_make_is_never_touched(tmp_path: Path) -> None:
    book = tmp_path / "LibriSpeech" / "BOOKS.TXT"
    book.parent.mkdir()
    book.write_text("the real corpus")
    finished = make(tmp_path, "--size", "tiny")
    assert finished.returncode == 1
    assert "was not made by this tool" in finished.stderr
    assert list(tmp_path.rglob("*.*")) == [book]


@pytest.mark.parametrize("size", ["large", "0", "-1", "nan"])
def test_an_unknown_size_is_one_sentence_that_names_the_known_ones(
    size: str, tmp_path: Path
) -> None:
    finished = make(tmp_path, f"--size={size}")
    assert finished.returncode == 1
    assert f"The size is '{size}'; expected tiny, small, default" in finished.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_default_size_has_its_speakers_and_uses_every_word_often() -> None:
    from mini_corpus import english, librispeech, plan, sentences

    sessions = librispeech.LibriSpeech().plan(plan.SIZES["default"], seed=0)
    training = [session for session in sessions if session.split == "train-clean-100"]
    assert len({session.speaker for session in training}) >= 30
    spoken = [
        word for session in training for text in session.sentences for word in text.lower().split()
    ]
    vocabulary = sentences.vocabulary(english.RULES, english.WORDS)
    assert len(vocabulary) >= 300
    assert set(spoken) == set(vocabulary)
    assert min(spoken.count(word) for word in vocabulary) >= 5


def test_no_two_words_sound_alike_in_any_accent() -> None:
    from mini_corpus import accents, english, sentences
    from mini_corpus.espeak import Espeak

    espeak = Espeak(seed=1)
    vocabulary = sentences.vocabulary(english.RULES, english.WORDS)
    for accent in accents.ENGLISH:
        espeak.set_voice(accent, "m1")
        sounds: dict[str, list[str]] = {}
        for word in vocabulary:
            sounds.setdefault(re.sub("[ˈˌː]", "", espeak.phonemes(word)), []).append(word)
        assert [words for words in sounds.values() if len(words) > 1] == [], accent


def test_a_voice_that_espeak_lacks_is_an_error_and_not_the_previous_voice() -> None:
    from mini_corpus.errors import CorpusError
    from mini_corpus.espeak import Espeak

    espeak = Espeak(seed=1)
    with pytest.raises(CorpusError, match="no voice variant 'm99'"):
        espeak.set_voice("en", "m99")
    with pytest.raises(CorpusError, match="failed with code"):
        espeak.set_voice("en-gb", "m1")


def test_resampling_keeps_a_tone_and_its_level() -> None:
    from mini_corpus import acoustics

    tone = np.sin(2 * np.pi * 1000 * np.arange(22050) / 22050).astype(np.float32)
    resampled = acoustics.resample(tone)
    expected = np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    assert resampled.size == 16000
    # The cut ends of the tone ring; 20 ms inside, float32 rounding is all that differs.
    np.testing.assert_allclose(resampled[320:-320], expected[320:-320], atol=1e-2)


@pytest.mark.parametrize("kind", ["white", "pink", "brown", "speech"])
def test_noise_has_unit_power_and_the_slope_of_its_colour(kind: str) -> None:
    from mini_corpus import acoustics

    rng = np.random.default_rng(0)
    signal = acoustics.noise("brown", np.zeros(160000, np.float32), rng)
    made = acoustics.noise(kind, signal, rng)
    assert np.mean(np.square(made)) == pytest.approx(1, rel=1e-4)
    power = np.abs(np.fft.rfft(made)) ** 2

    def octave_db(low_hz: int) -> float:
        return 10 * np.log10(power[low_hz * 10 : low_hz * 20].sum())

    # Energy per octave grows by 3 dB for white noise; the signal of "speech" is brown here.
    slope = {"white": 3.0, "pink": 0.0, "brown": -3.0, "speech": -3.0}[kind]
    assert (octave_db(2000) - octave_db(250)) / 3 == pytest.approx(slope, abs=0.5)


def test_noise_and_level_are_what_the_conditions_ask_for() -> None:
    from mini_corpus import acoustics

    conditions = acoustics.Conditions(
        noise_share=1.0,
        snr_db=(10.0, 10.0),
        reverberation_share=0.0,
        rt60_seconds=(0.1, 0.1),
        direct_to_reverberant_db=(6.0, 6.0),
    )
    rng = np.random.default_rng(0)
    speech = rng.standard_normal(32000).astype(np.float32)
    recordings = [acoustics.record(speech, conditions, -30.0, rng) / 32767 for _ in range(40)]
    # Every recording begins with at least 0.1 s in which only the noise is heard.
    noise_db = 10 * np.log10(np.mean([np.mean(recording[:1600] ** 2) for recording in recordings]))
    speech_db = 10 * np.log10(
        np.mean([np.mean(recording[6000:30000] ** 2) for recording in recordings])
    )
    # 40 random stretches of 0.1 s measure a level to some tenths of a decibel.
    assert noise_db == pytest.approx(-40, abs=1)
    # Speech at -30 dB plus noise at -40 dB.
    assert speech_db == pytest.approx(-30 + 10 * np.log10(1.1), abs=0.3)


def test_a_room_keeps_the_direct_sound_and_decays_by_60_db_in_its_reverberation_time() -> None:
    from mini_corpus import acoustics

    response = acoustics.room(0.5, 6.0, np.random.default_rng(0)).astype(np.float64)
    assert response[0] == 1
    assert 10 * np.log10(np.sum(response[1:] ** 2)) == pytest.approx(-6, abs=0.01)
    energy = [10 * np.log10(np.mean(response[start : start + 800] ** 2)) for start in (1000, 5000)]
    # 4000 samples are 0.25 s, half of the reverberation time; 800 random samples measure to about
    # 0.2 dB each.
    assert energy[0] - energy[1] == pytest.approx(30, abs=1)


def test_the_settings_name_all_that_decides_about_the_content(corpus: Path) -> None:
    settings = json.loads((corpus / "mini_corpus.json").read_text())
    assert settings.keys() == {"layout", "size", "seed", "generator", "espeakng-loader"}
