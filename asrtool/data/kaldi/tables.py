"""Kaldi's text files: an id and its value on each line, sorted by the bytes of the id.

As in Kaldi, LF ends a line and ASCII white space separates its fields. Other white space (U+00A0,
U+0085, U+2028, U+3000) is part of an id, a path or a transcript; Python's `split()` and
`splitlines()` would split there.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from asrtool.errors import UserError
from asrtool.log import plural
from asrtool.system import atomic

SHOWN = 3  # examples of a problem
fields = re.compile(r"\S+", re.ASCII).findall  # of a value, as in `fields("rec 0 1.5")`


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A fault of a data directory, reported once for all lines that have it."""

    where: str  # file:line of the first, or the file
    what: str
    remedy: str  # what to do about it; empty for notes
    count: int = 1
    examples: tuple[str, ...] = ()
    # error: cannot be read; untidy: Kaldi rejects it; note: legal, but worth knowing
    kind: Literal["error", "untidy", "note"] = "error"

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.examples) else ""
        examples = f" ({', '.join(self.examples)}{more})" if self.examples else ""
        return f"{self.where}: {self.what}{examples}" + (f"; {self.remedy}" if self.remedy else "")


class Row(NamedTuple):
    id: str
    value: str
    line: int


class Irregular(UserError):
    """A file is not sorted or not complete, or has a malformed line; `read` finds out which."""


@dataclass(frozen=True)
class Table:
    """One file as it is on the disk: `rows` in file order, `problems` with its format."""

    path: Path
    rows: list[Row]
    problems: list[Problem]
    conflicts: frozenset[str]  # ids with two different values

    def values(self) -> dict[str, str]:
        """Id -> value; the first one if an id occurs twice."""
        return {row.id: row.value for row in reversed(self.rows)}


def first(ids: Iterable[str]) -> tuple[str, ...]:
    return tuple(islice(ids, SHOWN))


def fix_command(folder: Path) -> str:
    return f"`asrtool check_data {folder} --fix`"


def split(line: bytes) -> tuple[str, str]:
    """Id and value of a line, both empty if it is blank. Raises `UnicodeDecodeError`."""
    key, value = (*line.split(maxsplit=1), b"", b"")[:2]
    return key.decode(), value.rstrip().decode()


def read(path: Path) -> Table:
    """Read one file and note everything wrong with its format; values are not checked."""
    data = path.read_bytes()
    findings = _Findings(path)
    if data.startswith(codecs.BOM_UTF8):
        data = data[len(codecs.BOM_UTF8) :]
        findings.add("untidy", 1, "the file starts with a byte-order mark", "{fix} removes it")
    rows: list[Row] = []
    seen: dict[str, str] = {}
    conflicts = set()
    # Split as bytes: str.splitlines would also split at U+2028 and the like within a transcript.
    lines = data.split(b"\n")
    for number, raw in enumerate(lines[:-1] if not lines[-1] else lines, 1):
        try:
            key, value = split(raw)
        except UnicodeDecodeError:
            findings.add(
                "error",
                number,
                "{lines} not in UTF-8",
                "`iconv -f <its encoding> -t UTF-8` converts the file",
            )
            continue
        if raw.endswith(b"\r"):
            findings.add(
                "untidy",
                number,
                "{lines} ending in CR LF, as Windows writes them",
                "{fix} removes the CR",
            )
        if not key:
            findings.add("untidy", number, "{lines} without an id", "{fix} removes them")
            continue
        if not key.isprintable():
            what = "{lines} whose id contains white space or invisible characters"
            findings.add("untidy", number, what, "choose other ids, in all files", repr(key))
        if key in seen and value != seen[key]:
            conflicts.add(key)
            findings.add(
                "error",
                number,
                "{lines} with a different value for an earlier id",
                "{fix} drops these utterances",
                key,
            )
        elif key in seen:
            findings.add("error", number, "{lines} repeated", "{fix} removes them", key)
        # Python compares code points, which is the order of bytes in UTF-8, as LC_ALL=C sorts.
        elif rows and key < rows[-1].id:
            findings.add("untidy", number, "not sorted (LC_ALL=C) in {lines}", "{fix} sorts", key)
        seen.setdefault(key, value)
        rows.append(Row(key, value, number))
    if not rows:
        findings.add("error", 1, "the file is empty", "write it again")
    return Table(path, rows, findings.problems(), frozenset(conflicts))


def render(values: Mapping[str, str]) -> str:
    """The lines of a file, in C-locale order."""
    return "".join(f"{key} {values[key]}".rstrip(" ") + "\n" for key in sorted(values))


def write(path: Path, values: Mapping[str, str]) -> None:
    """Write id -> value."""
    atomic.write_text(path, render(values))


class _Findings:
    """Collects faulty lines by their fault."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_kind: dict[tuple[str, str, str], list[tuple[int, str]]] = {}

    def add(self, kind: str, line: int, what: str, remedy: str, example: str = "") -> None:
        self.by_kind.setdefault((kind, what, remedy), []).append((line, example))

    def problems(self) -> list[Problem]:
        return [
            Problem(
                where=f"{self.path}:{lines[0][0]}",
                what=what.replace("{lines}", plural(len(lines), "line")),
                kind=kind,
                remedy=remedy.replace("{fix}", fix_command(self.path.parent)),
                count=len(lines),
                examples=first(example for _, example in lines if example),
            )
            for (kind, what, remedy), lines in self.by_kind.items()
        ]
