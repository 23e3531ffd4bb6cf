"""Results that lie below a folder, `exp/<tag>/<decode>/<set>/score.json`, and the texts that they
were made from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asrtool.score.files import SCORE, read_score, sha256
from asrtool.score.transcripts import TranscriptError, read_transcripts


@dataclass(frozen=True)
class Result:
    """One score.json, read; `folder` is where it lies."""

    folder: Path
    stored: Mapping

    @classmethod
    def read(cls, path: Path) -> Result:
        return cls(path.parent, read_score(path))

    @property
    def set(self) -> str:
        return self.folder.name

    @property
    def decode(self) -> str:
        return self.folder.parent.name

    @property
    def experiment(self) -> Path | None:
        """The nearest folder above that training wrote."""
        return next(
            (parent for parent in self.folder.parents if (parent / "config.yaml").is_file()), None
        )

    def file(self, side: str) -> Path:
        """The reference or hypothesis that was scored, as it was then; a `TranscriptError` where it
        has changed.

        A relative path starts where the score was made: here, or in a folder above the result.
        """
        stored = self.stored["files"][side]
        path = Path(stored["path"])
        places = [self.folder / path.name] if side == "hypothesis" else []
        places += [path, *(parent / path for parent in self.folder.resolve().parents)]
        there = [place for place in places if place.is_file()]
        if not there:
            raise TranscriptError(
                f"{self.folder / SCORE}: its {side} {path} is not there any more; score again"
            )
        for place in there:
            if sha256(place) == stored["sha256"]:
                return place
        raise TranscriptError(
            f"{there[0]} has changed since {self.folder / SCORE} was made of it; score again"
        )

    def texts(self, side: str) -> dict[str, str]:
        return read_transcripts(self.file(side))


def find(path: Path) -> list[Path]:
    """Every score.json of a folder, sorted; the file itself of one."""
    if path.is_file() and path.name == SCORE:
        return [path]
    if not path.is_dir():
        raise TranscriptError(
            f"{path}: no such folder; expected one that stage 5 has scored, as exp/<tag>"
        )
    return sorted(path.rglob(SCORE))


def pairs(first: Path, second: Path) -> tuple[list[tuple[Result, Result]], list[str]]:
    """Results of two folders for the same set, and the names of sets that only one of them has."""
    sides = [_by_set(path) for path in (first, second)]
    both = [name for name in sides[0] if name in sides[1]]
    if not both:
        found = [", ".join(side) or "no score.json" for side in sides]
        raise TranscriptError(f"no set in common: {first} has {found[0]}, {second} has {found[1]}")
    alone = sorted(sides[0].keys() ^ sides[1].keys())
    return [(sides[0][name], sides[1][name]) for name in both], alone


def _by_set(path: Path) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for file in find(path):
        result = Result.read(file)
        if result.set in found:
            both = f"{found[result.set].folder} and {result.folder}"
            raise TranscriptError(
                f"{path} holds several results of {result.set}: {both}; name one folder of "
                "decodings"
            )
        found[result.set] = result
    return found
