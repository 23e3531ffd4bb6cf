"""The layout of KeSpeech.

    KeSpeech/Audio/<speaker>/{phase1,phase2}/<speaker>_<8 hexadecimal digits>.wav
    KeSpeech/Metadata/phase1.{wav.scp,text,utt2style,utt2subdialect}
        phase2.{wav.scp,text,utt2env}
    KeSpeech/Metadata/{utt2spk,spk2age,spk2city,spk2gender}
    KeSpeech/Tasks/ASR/{train_phase1,train_phase2,dev_phase1,dev_phase2,test}/
        {wav.scp,text,utt2spk,spk2utt,utt2subdialect}

All tables have two columns separated by a space; the paths in `wav.scp` are relative to KeSpeech/
(`Audio/...`). In phase 1, speakers use their subdialect (style `Dialect`; for speakers of Mandarin
`Mandarin`). In phase 2, they read Mandarin in an environment that is `quiet` or `noisy`.
`utt2subdialect` is the accent of the utterance: all of phase 2 is `Mandarin`. `test` is from phase
1 and has unseen voices and a balanced number of accents.

accents: the first 9 are the labels of the corpus; more (up to 20) add cities, for studies of the
number of accents. skew: the share of training speakers with the n-th accent is proportional to
n^-skew; 0 is balanced.

Tang et al. 2021, "KeSpeech: an open source speech dataset of Mandarin and its eight subdialects".
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mini_corpus.accents import SUBDIALECTS
from mini_corpus.acoustics import HEAVY, LIGHT
from mini_corpus.errors import CorpusError
from mini_corpus.layout import Layout, joined, write_lines
from mini_corpus.plan import MANDARIN, MANDARIN_SIZES, SIZES, Session, Set, Size, plan, read_aloud
from mini_corpus.render import Times

_CITIES = {
    "Mandarin": "Beijing",
    "Beijing": "Chengde",
    "Ji-Lu": "Jinan",
    "Jiang-Huai": "Nanjing",
    "Jiao-Liao": "Qingdao",
    "Lan-Yin": "Lanzhou",
    "Northeastern": "Harbin",
    "Southwestern": "Chengdu",
    "Zhongyuan": "Xi'an",
}
_PHASE_2_SHARE = 0.35


@dataclass(frozen=True)
class KeSpeech(Layout):
    """Mandarin and its subdialects."""

    accents: int = 9
    skew: float = 0.0

    folders = ("KeSpeech",)
    # speakers of similar tempo, so that the tempo of an accent stands out
    language = replace(MANDARIN, manner=replace(MANDARIN.manner, words_per_minute=(225, 246)))
    sizes = {
        **MANDARIN_SIZES,
        "tiny": replace(SIZES["tiny"], train=(72, 9), dev=(18, 9), test=(18, 9)),
    }
    sets = (
        Set("train", "train", LIGHT, first_speaker=1000001),
        Set("dev", "dev", LIGHT, first_speaker=1500001),
        Set("test", "test", LIGHT, first_speaker=1700001, unseen=True),
    )

    def __post_init__(self) -> None:
        if not 1 <= self.accents <= len(SUBDIALECTS) or not 0 <= self.skew <= 5:
            raise CorpusError(
                f"--accents is {self.accents} and --skew is {self.skew:g}; expected 1 to "
                f"{len(SUBDIALECTS)} and 0 to 5."
            )

    def plan(self, size: Size, seed: int) -> list[Session]:
        shares = {
            name: rank**-self.skew for rank, name in enumerate(list(SUBDIALECTS)[: self.accents], 1)
        }
        numbers = {part.share: getattr(size, part.share) for part in self.sets}
        # at least two sentences and one speaker for each accent
        least = {
            name: (max(u, 2 * self.accents), max(s, self.accents))
            for name, (u, s) in numbers.items()
        }
        size = replace(size, **least)
        spoken: dict[str, dict] = {part.name: defaultdict(list) for part in self.sets}
        for session in plan(size, self.sets, self.language, seed, shares=shares):
            spoken[session.split][session.speaker] += session.sentences
        units = []
        for part in self.sets:
            for speaker, sentences in spoken[part.name].items():
                if part.name == "test":
                    units += read_aloud(speaker, sentences, part)
                    continue
                count = max(1, int(len(sentences) * (1 - _PHASE_2_SHARE)))
                first = read_aloud(
                    speaker, sentences[:count], replace(part, name=f"{part.name}_phase1")
                )
                conditions = HEAVY if _is_noisy(speaker.number) else LIGHT
                units += first + read_aloud(
                    replace(speaker, accent="Mandarin"),
                    sentences[count:],
                    replace(part, name=f"{part.name}_phase2", conditions=conditions),
                    first_index=count,
                    first_session=len(first),
                )
        return units

    def audio_paths(self, session: Session, root: Path) -> tuple[Path, ...]:
        return tuple(root / "KeSpeech" / path for _, path, _ in _utterances(session))

    def write_tables(self, units: Sequence[Session], times: Sequence[Times], root: Path) -> None:
        tables: dict[str, list[str]] = defaultdict(list)
        home: dict[int, str] = {}
        spoken: dict[tuple[str, int], list[str]] = defaultdict(list)
        for session in units:
            speaker = session.speaker
            home.setdefault(speaker.number, speaker.accent)  # phase 1 comes first
            task = f"Tasks/ASR/{session.split}"
            phase = f"Metadata/{_phase(session)}"
            for utterance, path, text in _utterances(session):
                for folder in (f"{task}/", f"{phase}."):
                    tables[f"{folder}wav.scp"].append(f"{utterance} {path}")
                    tables[f"{folder}text"].append(f"{utterance} {text}")
                spoken[f"{task}/spk2utt", speaker.number].append(utterance)
                for table in (f"{task}/utt2spk", "Metadata/utt2spk"):
                    tables[table].append(f"{utterance} {speaker.number}")
                tables[f"{task}/utt2subdialect"].append(f"{utterance} {speaker.accent}")
                if phase.endswith("1"):
                    tables[f"{phase}.utt2subdialect"].append(f"{utterance} {speaker.accent}")
                    style = "Mandarin" if speaker.accent == "Mandarin" else "Dialect"
                    tables[f"{phase}.utt2style"].append(f"{utterance} {style}")
                else:
                    environment = "noisy" if _is_noisy(speaker.number) else "quiet"
                    tables[f"{phase}.utt2env"].append(f"{utterance} {environment}")
        for speaker in {session.speaker.number: session.speaker for session in units}.values():
            accent = home[speaker.number]
            tables["Metadata/spk2age"].append(f"{speaker.number} {18 + speaker.number * 7 % 50}")
            tables["Metadata/spk2city"].append(f"{speaker.number} {_CITIES.get(accent, accent)}")
            tables["Metadata/spk2gender"].append(
                f"{speaker.number} {'Male' if speaker.sex == 'M' else 'Female'}"
            )
        for (name, number), utterances in spoken.items():
            tables[name].append(f"{number} {' '.join(sorted(utterances))}")
        for name, lines in tables.items():
            write_lines(root / "KeSpeech" / name, sorted(lines))


def _utterances(session: Session) -> Iterator[tuple[str, str, str]]:
    """Id, path and text of each utterance."""
    speaker = session.speaker.number
    for index, sentence in enumerate(session.sentences, session.first_index):
        utterance = f"{speaker}_{hashlib.sha256(f'{speaker} {index}'.encode()).hexdigest()[:8]}"
        yield utterance, f"Audio/{speaker}/{_phase(session)}/{utterance}.wav", joined(sentence)


def _phase(session: Session) -> str:
    return "phase2" if session.split.endswith("2") else "phase1"


def _is_noisy(speaker: int) -> bool:
    return speaker % 3 == 0
