"""The two files of a result, `result.txt` and `score.json`, and how they appear together.

`score.json` is the mark of a finished result: it is removed before `result.txt` is replaced, comes last, and holds the
SHA-256 of the `result.txt` that it belongs to. Whatever moment the machine dies at, a `score.json` has its `result.txt`
beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

from asrtool.score.report import ScoreReport
from asrtool.score.result import write_result
from asrtool.score.transcripts import TranscriptError

RESULT, SCORE = "result.txt", "score.json"


def write_pair(
    out: Path,
    report: ScoreReport,
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    speakers: Mapping[str, str] | None,
    title: str,
    facts: Mapping[str, object],
) -> None:
    """Write both into `out`; `facts`: further keys of score.json, among them `files`; the rest as of `write_result`."""
    names = {name: out / f"{name}.tmp" for name in (RESULT, SCORE)}
    with ExitStack() as stack:
        for path in names.values():
            stack.callback(path.unlink, missing_ok=True)
        speakers = dict.fromkeys(references, "unknown") if speakers is None else speakers
        with open(names[RESULT], "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            write_result(file, report, references, hypotheses, speakers, title)
            _sync(file)
        with open(names[SCORE], "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            stored = {**report.json(), **facts, "result_sha256": sha256(names[RESULT])}
            file.write(json.dumps(stored, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
            _sync(file)
        (out / SCORE).unlink(missing_ok=True)
        os.replace(names[RESULT], out / RESULT)
        os.replace(names[SCORE], out / SCORE)


def replace_text(path: Path, text: str) -> None:
    """Write a small file under a temporary name, then rename."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            file.write(text)
            _sync(file)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
        raise TranscriptError(f"{path}: the {RESULT} beside it is missing or not the one it belongs to; score again")
    return stored


def _sync(file: TextIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
