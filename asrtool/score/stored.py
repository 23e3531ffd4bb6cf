"""The two files of a result, `result.txt` and `score.json`, and how they appear together.

`score.json` is the mark of a finished result: it is removed before `result.txt` is replaced, comes
last, and holds the SHA-256 of the `result.txt` that it belongs to. Whatever moment the machine dies
at, a `score.json` has its `result.txt` beside it.

Reading one back checks that, and that the scored texts have not changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from asrtool.errors import UserError
from asrtool.score.sclite import write_result
from asrtool.score.scoring import ScoreReport
from asrtool.score.transcripts import read_transcripts
from asrtool.system import atomic

RESULT, SCORE = "result.txt", "score.json"
UNENCODABLE = "backslashreplace"


def write_pair(
    out: Path,
    report: ScoreReport,
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    speakers: Mapping[str, str] | None,
    title: str,
    facts: Mapping[str, object],
) -> None:
    """Write result.txt and score.json into `out`.

    facts: further keys of score.json, among them `files`; the rest as in `write_result`.
    """
    speakers = dict.fromkeys(references, "unknown") if speakers is None else speakers
    with atomic.replacing(out / SCORE) as score, atomic.replacing(out / RESULT) as result:
        with open(result, "w", encoding="utf-8", errors=UNENCODABLE, newline="\n") as file:
            write_result(file, report, references, hypotheses, speakers, title)
        with open(score, "w", encoding="utf-8", errors=UNENCODABLE, newline="\n") as file:
            stored = {**report.json(), **facts, "result_sha256": sha256(result)}
            file.write(json.dumps(stored, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
        (out / SCORE).unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a small file that may name files whose names are no UTF-8."""
    atomic.write_text(path, text, errors=UNENCODABLE)


def read_score(path: Path) -> dict:
    """A score.json that belongs to the result.txt beside it, else a `UserError`."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a score.json ({error}); score again") from None
    if not isinstance(stored, dict) or "total" not in stored or "files" not in stored:
        raise UserError(f"{path}: not a score.json of this version; score again")
    result = path.with_name(RESULT)
    if not result.is_file() or sha256(result) != stored.get("result_sha256"):
        raise UserError(
            f"{path}: the {RESULT} beside it is missing or belongs to another score.json; score "
            "again"
        )
    return stored


def sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class StoredScore:
    """The content of a score.json; `folder` is its folder."""

    folder: Path
    stored: Mapping

    @classmethod
    def read(cls, path: Path) -> StoredScore:
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
        """The reference or hypothesis that was scored, as it was then; a `UserError` where it
        has changed.

        A relative path starts where the score was made: here, or in a folder above the result.
        """
        stored = self.stored["files"][side]
        path = Path(stored["path"])
        candidates = [self.folder / path.name] if side == "hypothesis" else []
        candidates += [path, *(parent / path for parent in self.folder.resolve().parents)]
        existing = [candidate for candidate in candidates if candidate.is_file()]
        if not existing:
            raise UserError(
                f"{self.folder / SCORE}: its {side} {path} no longer exists; score again"
            )
        for candidate in existing:
            if sha256(candidate) == stored["sha256"]:
                return candidate
        raise UserError(
            f"{existing[0]} has changed since {self.folder / SCORE} was computed from it; score "
            "again"
        )

    def texts(self, side: str) -> dict[str, str]:
        return read_transcripts(self.file(side))


def find(path: Path) -> list[Path]:
    """Every score.json of a folder, sorted; the file itself of one."""
    if path.is_file() and path.name == SCORE:
        return [path]
    if not path.is_dir():
        raise UserError(
            f"{path}: no such folder; expected one that stage 5 has scored, as exp/<tag>"
        )
    return sorted(path.rglob(SCORE))


def pairs(first: Path, second: Path) -> tuple[list[tuple[StoredScore, StoredScore]], list[str]]:
    """Results of two folders for the same set, and the names of sets that only one of them has."""
    sides = [_by_set(path) for path in (first, second)]
    both = [name for name in sides[0] if name in sides[1]]
    if not both:
        listed = [", ".join(side) or "no score.json" for side in sides]
        raise UserError(f"no set in common: {first} has {listed[0]}, {second} has {listed[1]}")
    alone = sorted(sides[0].keys() ^ sides[1].keys())
    return [(sides[0][name], sides[1][name]) for name in both], alone


def _by_set(path: Path) -> dict[str, StoredScore]:
    results: dict[str, StoredScore] = {}
    for file in find(path):
        result = StoredScore.read(file)
        if result.set in results:
            both = f"{results[result.set].folder} and {result.folder}"
            raise UserError(
                f"{path} holds several results of {result.set}: {both}; name one folder of "
                "decodings"
            )
        results[result.set] = result
    return results
