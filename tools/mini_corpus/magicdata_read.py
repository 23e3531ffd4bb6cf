"""The layout of MagicData's read speech, as its three archives unpack next to each other.

    MAGICDATA/{train,dev,test}/<speaker>/<speaker>_<date and time>.wav
    MAGICDATA/{train,dev,test}/TRANS.txt     UtteranceID<TAB>SpeakerID<TAB>Transcription
    MAGICDATA/SPKINFO.txt                    SPKID<TAB>Age<TAB>Gender<TAB>Dialect

Both tables have a header line. Utterance ids in TRANS.txt end with .wav; speaker ids are
<number>_<number>. Transcriptions have no spaces and, as in the corpus, some punctuation. The voices
of `test` are in no other set. openslr.org/68.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from mini_corpus.acoustics import LIGHT
from mini_corpus.layout import Layout, joined, write_lines
from mini_corpus.plan import Session, Set
from mini_corpus.render import Times
from mini_corpus.speakers import Speaker

_FIRST = datetime(2017, 8, 1, 9, 0, 0)

# Provinces of the accents of `accents.READING`.
_PROVINCES = {
    "standard": "beijing",
    "north": "hebei",
    "northeast": "liaoning",
    "east": "jiangsu",
    "south": "guangdong",
    "southwest": "sichuan",
    "northwest": "shaanxi",
}


@dataclass(frozen=True)
class MagicDataRead(Layout):
    """Mandarin read speech."""

    folders = ("MAGICDATA",)
    sets = (
        Set("train", "train", LIGHT, first_speaker=5001),
        Set("dev", "dev", LIGHT, first_speaker=6001),
        Set("test", "test", LIGHT, first_speaker=7001, unseen=True),
    )

    def audio_paths(self, session: Session, root: Path) -> tuple[Path, ...]:
        folder = root / "MAGICDATA" / session.split / _name(session.speaker)
        return tuple(folder / file for file in _files(session))

    def write_tables(self, units: Sequence[Session], times: Sequence[Times], root: Path) -> None:
        rows: dict[str, list[str]] = defaultdict(list)
        speakers = {}
        for session in units:
            speakers[_name(session.speaker)] = session.speaker
            for index, (file, sentence) in enumerate(
                zip(_files(session), session.sentences, strict=True)
            ):
                text = joined(sentence) + ("。" if index % 5 == 0 else "")
                rows[session.split].append(f"{file}\t{_name(session.speaker)}\t{text}")
        for split, lines in rows.items():
            header = "UtteranceID\tSpeakerID\tTranscription"
            write_lines(root / "MAGICDATA" / split / "TRANS.txt", [header, *sorted(lines)])
        people = [
            f"{name}\t{18 + speaker.number * 7 % 40}\t{'male' if speaker.sex == 'M' else 'female'}"
            f"\t{_PROVINCES[speaker.accent]}"
            for name, speaker in sorted(speakers.items())
        ]
        write_lines(root / "MAGICDATA" / "SPKINFO.txt", ["SPKID\tAge\tGender\tDialect", *people])


def _name(speaker: Speaker) -> str:
    return f"{speaker.number % 97}_{speaker.number}"


def _files(session: Session) -> list[str]:
    times = (
        _FIRST + timedelta(seconds=20 * (session.first_index + index))
        for index in range(len(session.sentences))
    )
    return [f"{_name(session.speaker)}_{time:%Y%m%d%H%M%S}.wav" for time in times]
