"""The base class of layouts: which files a corpus has, and where.

Each layout has its own module; `tools/make_mini_corpus.py` lists them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from mini_corpus.plan import MANDARIN, MANDARIN_SIZES, Language, Session, Set, Size, plan
from mini_corpus.reading import Reading
from mini_corpus.render import Job, Times


class Layout(ABC):
    """A corpus of read speech with one file per utterance.

    Conversations override `plan` and `jobs`. A unit is what one process synthesises: a session or a
    conversation. `root` is the folder that `folders` are written into. The fields of a layout's
    dataclass are its options.
    """

    folders: ClassVar[tuple[str, ...]]
    sets: ClassVar[tuple[Set, ...]]
    language: ClassVar[Language] = MANDARIN
    sizes: ClassVar[Mapping[str, Size]] = MANDARIN_SIZES

    def plan(self, size: Size, seed: int) -> list[Any]:
        """The units of all sets."""
        return plan(size, self.sets, self.language, seed)

    def jobs(self, units: Sequence[Any], root: Path, seed: int) -> list[Job]:
        """One job per unit."""
        return [Reading(unit, self.audio_paths(unit, root), seed) for unit in units]

    def audio_paths(self, session: Session, root: Path) -> tuple[Path, ...]:
        """The audio file of each sentence of a session."""
        raise NotImplementedError(f"{type(self).__name__} has no sessions.")

    @abstractmethod
    def write_tables(self, units: Sequence[Any], times: Sequence[Times], root: Path) -> None:
        """Write all files except audio.

        times: start and end in seconds of each sentence of each unit.
        """


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write `lines` in UTF-8, each with a line feed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def joined(sentence: str) -> str:
    """A Mandarin sentence without the spaces between its words."""
    return sentence.replace(" ", "")
