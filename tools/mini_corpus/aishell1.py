"""The layout of AISHELL-1, as its archives unpack.

    data_aishell/wav/{train,dev,test}/S<4 digits>/BAC009S<4 digits>W<4 digits>.wav
    data_aishell/transcript/aishell_transcript_v0.8.txt     <utterance> <words separated by spaces>

The voices of `test` are in no other set; `dev` has voices of `train` in other combinations with
accents. Bu et al. 2017, "AISHELL-1: an open-source Mandarin speech corpus and a speech recognition
baseline"; openslr.org/33.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_corpus.acoustics import LIGHT
from mini_corpus.layout import Layout, write_lines
from mini_corpus.plan import Session, Set
from mini_corpus.render import Times

_FIRST_UTTERANCE = 121


@dataclass(frozen=True)
class Aishell1(Layout):
    """Mandarin read speech; the test set has unseen voices."""

    folders = ("data_aishell",)
    sets = (
        Set("train", "train", LIGHT, first_speaker=2),
        Set("dev", "dev", LIGHT, first_speaker=724),
        Set("test", "test", LIGHT, first_speaker=764, unseen=True),
    )

    def audio_paths(self, session: Session, root: Path) -> tuple[Path, ...]:
        folder = root / "data_aishell" / "wav" / session.split / _speaker(session)
        return tuple(folder / f"{utterance}.wav" for utterance in _utterances(session))

    def write_tables(self, units: Sequence[Session], times: Sequence[Times], root: Path) -> None:
        lines = [
            f"{utterance} {sentence}"
            for session in units
            for utterance, sentence in zip(_utterances(session), session.sentences, strict=True)
        ]
        write_lines(
            root / "data_aishell" / "transcript" / "aishell_transcript_v0.8.txt", sorted(lines)
        )


def _speaker(session: Session) -> str:
    return f"S{session.speaker.number:04d}"


def _utterances(session: Session) -> list[str]:
    first = _FIRST_UTTERANCE + session.first_index
    return [
        f"BAC009{_speaker(session)}W{first + index:04d}" for index in range(len(session.sentences))
    ]
