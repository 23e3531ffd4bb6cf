"""Reading what is scored: Kaldi `text`, `trn` and `hyps.jsonl` files.

| name ends in | a line |
|---|---|
| `.trn` | `text (id)`; lines that start with `;;` are comments |
| `.jsonl` | `{"id": ..., "text": ...}`; with recognised labels also `labels` or `classes` |
| anything else | `id text`, separated by spaces, tabs or U+3000; the text may be empty |

UTF-8 with or without byte-order marks, LF or CRLF. Blank lines mean nothing; any other line that
cannot be read is an error with file and line. No other white space (U+00A0, U+2028 ...) ends a line
or an id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from asrtool.errors import UserError

BLANK = " \t\r\f\v\u3000"  # what divides an id from its text


def locate(path: Path) -> Path:
    """The transcript file that `path` means: itself, or `text` (else `hyps.jsonl`) of a folder."""
    if not path.exists():
        expected = "a text, trn or jsonl file, or a folder that holds one"
        raise UserError(f"{path}: no such file or folder; expected {expected}")
    if path.is_file():
        return path
    for name in ("text", "hyps.jsonl"):
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: the folder holds neither text nor hyps.jsonl")


def read_transcripts(path: Path) -> dict[str, str]:
    """Utterance id -> text, in the order of the file."""
    parse = {".trn": _trn, ".jsonl": _jsonl}.get(path.suffix.lower(), _kaldi)
    texts: dict[str, str] = {}
    for number, line in _lines(path):
        try:
            name, text = parse(line)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        if name in texts:
            first = _line_of(name, path, parse)
            raise UserError(
                f"{path}:{number}: utterance '{name}' occurs twice, first in line {first}"
            )
        texts[name] = text
    return texts


def read_recognized(path: Path) -> dict[str, dict[str, str]]:
    """Label -> utterance id -> recognised value, from a jsonl file; empty for other files.

    A line has `"labels": {label: value}`, or `"classes": {label: {value: probability}}`, of which
    the largest counts.
    """
    answers: dict[str, dict[str, str]] = {}
    if path.suffix.lower() != ".jsonl" or not path.is_file():
        return answers
    for number, line in _lines(path):
        # most files have none, and JSON takes its time
        if '"labels"' not in line and '"classes"' not in line:
            continue
        row = json.loads(line)
        try:
            labels = {
                label: max(values, key=values.get)
                for label, values in row.get("classes", {}).items()
            }
            labels |= row.get("labels", {})
        except (AttributeError, TypeError, ValueError):
            labels = {"": None}
        if not all(isinstance(value, str) for value in labels.values()):
            expected = (
                '"labels": {"<label>": "<value>"} or "classes": {"<label>": {"<value>": '
                "<probability>}}"
            )
            raise UserError(f"{path}:{number}: expected {expected}")
        for label, value in labels.items():
            answers.setdefault(label, {})[row["id"]] = value
    return answers


def first_of(names: list[str], limit: int = 5) -> str:
    """The first few names, and that there are more."""
    return ", ".join(names[:limit]) + (", ..." if len(names) > limit else "")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{data[error.start]:02x}"
        raise UserError(f"{path}:{number}: not UTF-8 ({byte}); convert the file to UTF-8") from None
    del data
    comments = path.suffix.lower() == ".trn"
    # Only LF ends a line: str.splitlines would also cut at U+2028, U+0085 and form feeds inside a
    # transcript.
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.removeprefix("\ufeff").strip(BLANK)
        if line.strip() and not (comments and line.startswith(";;")):
            yield number, line


def _kaldi(line: str) -> tuple[str, str]:
    name, *text = re.split(f"[{BLANK}]", line, maxsplit=1)
    return name, text[0].strip() if text else ""


def _trn(line: str) -> tuple[str, str]:
    text, bracket, name = line.rpartition("(")
    name = name.removesuffix(")").strip()
    if not bracket or not line.endswith(")") or not name:
        raise UserError("expected 'text (utterance id)'")
    if "{" in text and "/" in text:
        raise UserError("alternatives such as {a / b} are not supported; write one of them")
    if "@" in text.split():
        raise UserError("sclite's empty word @ is not supported; leave it out")
    return name, text.strip()


def _jsonl(line: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(
            f"not JSON ({error.msg} at column {error.colno}); expected one object a line"
        ) from None
    if (
        not isinstance(row, dict)
        or not isinstance(row.get("id"), str)
        or not isinstance(row.get("text"), str)
    ):
        raise UserError('expected an object with the strings "id" and "text"')
    return row["id"], row["text"]


def _line_of(name: str, path: Path, parse: Callable[[str], tuple[str, str]]) -> int:
    return next(number for number, line in _lines(path) if parse(line)[0] == name)
