"""The two files of a result, `result.txt` and `score.json`, and how they appear together.

`score.json` is the mark of a finished result: it is removed before `result.txt` is replaced, comes
last, and holds the SHA-256 of the `result.txt` that it belongs to. Whatever moment the machine dies
at, a `score.json` has its `result.txt` beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from asrtool.score.report import ScoreReport
from asrtool.score.result import write_result
from asrtool.score.transcripts import TranscriptError
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
    """Write both into `out`; `facts`: further keys of score.json, among them `files`; the rest as
    of `write_result`.
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
    """A score.json that belongs to the result.txt beside it, else a `TranscriptError`."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TranscriptError(f"{path}: not a score.json ({error}); score again") from None
    if not isinstance(stored, dict) or "total" not in stored or "files" not in stored:
        raise TranscriptError(f"{path}: not a score.json of this version; score again")
    result = path.with_name(RESULT)
    if not result.is_file() or sha256(result) != stored.get("result_sha256"):
        raise TranscriptError(
            f"{path}: the {RESULT} beside it is missing or not the one it belongs to; score again"
        )
    return stored


def sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
