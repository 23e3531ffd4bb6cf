"""What the readers of all formats give: an `Entry` for each utterance, or a reason why it is left
out.

A fault of the whole (a line that is no JSON, a missing key, an id that occurs twice) raises
`UserError` with file and line. What only concerns one utterance is a `LeftOut`, and what a data
directory cannot hold (alignments, arrays) is counted in `Notes` and logged.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import NamedTuple

from asrtool.data import audio, tree
from asrtool.data.kaldi.form import is_label
from asrtool.errors import UserError
from asrtool.system import characters

REMOTE = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]+://")
BREAK = re.compile(r"\s*[\r\n]+\s*")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One utterance as its manifest describes it.

    audio: a path, a member of a tar archive, or the bytes of a file. start, duration: the part of
    it, in seconds; None: to the end. length: seconds of the whole file, if the manifest tells.
    A part from 0 that ends within `tolerance` seconds of the file's end is the whole file.
    """

    where: str  # file:line
    id: str
    audio: str | bytes
    text: str
    speaker: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    recording: str | None = None  # name of the audio where parts of it are utterances
    start: float = 0.0
    duration: float | None = None
    length: float | None = None
    tolerance: float = audio.SLACK
    channel: int | None = None  # of several, counted from 0


class LeftOut(NamedTuple):
    """An utterance that cannot be used, and why."""

    where: str
    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.id}: {self.where}: {self.reason}"


Item = Entry | LeftOut
Notes = Counter[str]  # what is not imported as it is -> how often; logged at the end


@dataclass(frozen=True)
class Source:
    """An opened data set.

    items: gives its utterances. manifests: files that are compared by content when the same command
    runs again; archives: those that are compared by name and size.
    """

    items: Callable[[Notes], Iterable[Item]]
    manifests: Sequence[Path]
    archives: Sequence[Path] = ()


# -- values -----------------------------------------------------------------


def word(value: object) -> str:
    """An id or a speaker: white space, which Kaldi's files cannot hold, becomes `_`."""
    return "_".join(str(value).split())


def speaker(value: object) -> str | None:
    return None if value is None else word(value) or None


def transcript(value: object, where: str, notes: Notes) -> str:
    """One line of text."""
    if not isinstance(value, str):
        raise UserError(f"{where}: the text is {value!r}, expected a string")
    text = value.strip()
    if "\n" in text or "\r" in text:
        notes["line breaks in transcripts became spaces"] += 1
        text = BREAK.sub(" ", text)
    return text


def number(value: object, name: str, where: str) -> float:
    """Seconds, at least 0."""
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    if not usable or not 0 <= value < float("inf"):
        raise UserError(f"{where}: '{name}' is {value!r}, expected seconds, at least 0")
    return float(value)


def need(fields: Mapping[str, object], name: str, where: str) -> object:
    if fields.get(name) is None:
        has = ", ".join(map(str, fields)) or "nothing"
        raise UserError(f"{where}: there is no '{name}'; expected it beside {has}")
    return fields[name]


def labels(fields: Mapping[str, object], notes: Notes) -> dict[str, str]:
    """The words and numbers among the fields, which become files utt2<name>."""
    found: dict[str, str] = {}
    for name, value in fields.items():
        label = re.sub(r"\W", "_", name)
        if value is None:
            continue
        if isinstance(value, bool):
            value = str(value).lower()
        elif not isinstance(value, str | int | float):
            notes[f"'{name}' is not imported: neither a word nor a number"] += 1
            continue
        text = " ".join(str(value).split())
        if not text:
            continue
        if label in found or not is_label(f"utt2{label}"):
            notes[f"'{name}' is not imported: utt2{label} is another file"] += 1
        else:
            found[label] = text
    return found


class Names:
    """Ids for the audio files of a data set: the name without extension, or the path (below the
    common folder, if there is one) where two folders have a file of that name.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._stems: dict[str, str | None] = {}
        folders: set[str] = set()
        for path in paths:
            folders.add(os.path.dirname(path))
            if self._stems.setdefault(_stem(path), path) != path:
                self._stems[_stem(path)] = None
        alike = len({os.path.isabs(folder) for folder in folders}) == 1
        self._root = os.path.commonpath(folders) if alike else ""

    def __call__(self, path: str) -> str:
        if self._stems[_stem(path)] is not None:
            return word(_stem(path))
        below = os.path.relpath(path, self._root) if self._root else path.lstrip("/")
        return word(os.path.splitext(below)[0])


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def is_writable(entry: Entry) -> bool:
    """Whether all its strings can be written as UTF-8; JSON can hold halves of surrogate pairs."""
    path = entry.audio if isinstance(entry.audio, str) else ""
    values = (entry.id, entry.text, entry.speaker or "", path, *entry.labels.values())
    return all(map(characters.is_utf8, values))


# -- files ------------------------------------------------------------------


def located(path: str, folders: Sequence[Path]) -> str:
    """The absolute path of an audio file, relative to the first of `folders` that has it.

    Raises `UserError` for addresses and commands, which a manifest may not name.
    """
    if REMOTE.match(path):
        raise UserError(f"{path} is not a file on this machine; copy it here and change the path")
    path = os.path.expanduser(tree.listed(path))
    places = [os.path.abspath(folder / path) for folder in folders]
    return next((place for place in places if os.path.exists(place)), places[0])


def expanded(pattern: str) -> list[Path]:
    """The files that a name, a list with commas, a pattern of the shell (`*`, `?`, `[...]`) or a
    range (`{0..7}`, or NeMo's `_OP_0..7_CL_`) stands for; of a folder, its archives.
    """
    if Path(pattern).is_dir():
        found = sorted(Path(pattern).glob("*.tar"))
        if not found:
            raise UserError(f"{pattern}: no *.tar in this folder; it has {listing(pattern)}")
        return found
    if Path(pattern).exists():
        return [Path(pattern)]
    found = []
    for name in _ranges(pattern.replace("_OP_", "{").replace("_CL_", "}")):
        found += map(Path, sorted(glob(name))) if glob(name) else [tree.need(Path(name))]
    return found


def listing(folder: str) -> str:
    return tree.listing(Path(folder))


def _ranges(text: str) -> list[str]:
    """The words of a brace expression: `{0..3}`, `{00..12}`, `{a,b}`; without braces, of commas."""
    match = re.search(r"\{([^{}]*)\}", text)
    if match is None:
        return [part for part in text.split(",") if part]
    bounds = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if bounds is None:
        words = match[1].split(",")
    else:
        width = len(bounds[1]) if bounds[1].startswith("0") else 0
        words = [f"{n:0{width}}" for n in range(int(bounds[1]), int(bounds[2]) + 1)]
    before, after = text[: match.start()], text[match.end() :]
    return [name for value in words for name in _ranges(before + value + after)]
