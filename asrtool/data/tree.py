"""Read a corpus in its publisher's layout: required files, audio by name, texts by id.

A fault raises `UserError` with the file, what was expected and what is there. Texts are UTF-8; a
byte-order mark, CR LF, blank lines and repeated white space do not matter. Results depend neither
on the locale nor on the order of files on the disk. Links to folders are followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import NamedTuple

from asrtool.data.audio import is_pipe
from asrtool.errors import UserError
from asrtool.system import characters

EXTENSIONS = {".flac", ".wav", ".opus", ".ogg", ".mp3", ".sph"}
EXTENSIONS |= {".m4a", ".mp4", ".webm", ".mka", ".aac", ".amr", ".3gp", ".wma"}
ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")
MINIATURE = "mini_corpus.json"  # tools/make_mini_corpus.py writes it into its trees
LISTED = 8  # names of a folder that are listed
FEW, SHARE = 3, 0.1  # number and share of utterances that may lack text or audio; the larger counts


class Joined(NamedTuple):
    """The sorted ids with both text and audio, and id -> sentence for those that lack one."""

    ids: list[str]
    left_out: dict[str, str]


# -- what must be there ----------------------------------------------------


def need(path: Path) -> Path:
    """`path`. Raises `UserError` if it does not exist, with what is there instead."""
    if path.exists():
        return path
    missing = path
    while not missing.parent.is_dir():
        missing = missing.parent
    packed = [
        name
        for name in _names(missing.parent)
        if name.endswith(ARCHIVES) and name.startswith(missing.name)
    ]
    hint = (
        f"{missing.parent / packed[0]} must be unpacked first"
        if packed
        else (f"'{missing.parent}' contains {listing(missing.parent)}")
    )
    raise UserError(f"there is no {path}; {hint}")


def root(corpus: Path, name: str, holds: str) -> Path:
    """The folder that contains `holds`: `corpus` or its subfolder `name`."""
    for folder in (corpus, corpus / name):
        if (folder / holds).exists():
            return folder
    return need((corpus / name if (corpus / name).is_dir() else corpus) / holds).parent


def listing(folder: Path) -> str:
    """The first few names in a folder, for messages."""
    names = _names(folder)
    return ", ".join(names[:LISTED]) + (", ..." if names[LISTED:] else "") or "nothing"


def is_miniature(folder: Path) -> bool:
    """Whether the tree is synthetic: its counts are not the official ones."""
    return any((parent / MINIATURE).exists() for parent in (folder, folder.parent))


def _names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


# -- audio -----------------------------------------------------------------


def audio_by_id(*roots: Path) -> dict[str, str]:
    """Audio file name without extension -> path, below the folders; raises for duplicate names."""
    paths: dict[str, str] = {}
    for parent, name in (
        (parent, name)
        for folder in roots
        for parent, name in _files(str(folder), {os.path.realpath(folder)})
    ):
        stem, extension = os.path.splitext(name)
        if extension.lower() not in EXTENSIONS or name.startswith("."):
            continue
        path = f"{parent}/{name}"
        if not characters.is_utf8(path):
            raise UserError(
                f"{path}: the name of the file is not UTF-8, as wav.scp must be; rename it (`convmv"
                " -f <its encoding> -t utf-8 -r --notest <folder>`)"
            )
        if paths.setdefault(stem, path) != path:
            first, second = sorted((paths[stem], path))
            raise UserError(
                f"two audio files have the name '{stem}'; remove one: {first}, {second}"
            )
    return paths


def listed(path: str) -> str:
    """The path of an audio file in a list of the corpus; raises for commands (they end in `|`)."""
    if is_pipe(path):
        raise UserError(f"there is no file {path}; commands in a corpus's file lists are not run")
    return path


def _files(folder: str, linked: Set[str]) -> Iterator[tuple[str, str]]:
    """Folder and name of every file; cycles of links end."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if not entry.is_dir():
            yield folder, entry.name
        elif not entry.is_symlink() or (real := os.path.realpath(entry.path)) not in linked:
            yield from _files(entry.path, linked if not entry.is_symlink() else linked | {real})


# -- texts -----------------------------------------------------------------


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and content of every line that is not blank."""
    try:
        content = need(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: expected UTF-8, but byte {error.start} is not; convert it with iconv"
        ) from None
    for number, line in enumerate(content.split("\n"), 1):
        if line and not line.isspace():
            yield number, line.rstrip()


class Table(dict[str, str]):
    """Id -> value from lines `<id> <value>` of some files, with single spaces in the value."""

    def __init__(
        self, paths: Iterable[Path], pattern: str = r"\S+", header: str | None = None
    ) -> None:
        """Raises `UserError` if an id does not match `pattern` or is repeated.

        header: the first word of a line that is skipped.
        """
        super().__init__()
        self.paths = list(paths)
        self.header = header
        matches = re.compile(pattern).fullmatch
        for path in self.paths:
            # Counted per file: an empty file among several is likely a mistake.
            before = len(self)
            for number, line in lines(path):
                identity, *words = line.split()
                if identity == header:
                    continue
                if not matches(identity):
                    raise UserError(
                        f"{path}:{number}: expected an utterance id like {pattern} and its text, "
                        f"got '{identity}'"
                    )
                if identity in self:
                    first = self.where([identity])[identity]
                    raise UserError(
                        f"{path}:{number}: {identity} already has a text, {first}; remove one"
                    )
                self[identity] = " ".join(words)
            if len(self) == before:
                raise UserError(f"{path}: the file has no entry; expected lines '<id> <text>'")

    def where(self, ids: Iterable[str]) -> dict[str, str]:
        """`<file>:<line>` of each id.

        The files are read again, since this is needed rarely and for few ids.
        """
        wanted, lines_of = set(ids), {}
        for path in self.paths if wanted else ():
            for number, line in lines(path):
                if (identity := line.split(maxsplit=1)[0]) in wanted:
                    lines_of.setdefault(identity, f"{path}:{number}")
        return lines_of


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a tab-separated table with column names in its first line."""
    cells = [[cell.strip() for cell in line.split("\t")] for _, line in lines(path)]
    return [dict(zip(cells[0], row, strict=False)) for row in cells[1:]]


# -- both ------------------------------------------------------------------


def join(texts: Table, audio: Mapping[str, str]) -> Joined:
    """The ids that `texts` and `audio` share. Raises `UserError` if too many lack a match."""
    mute, silent = sorted(texts.keys() - audio.keys()), sorted(audio.keys() - texts.keys())
    text_lines = texts.where(mute)
    if too_many(len(mute), len(texts)):
        raise UserError(
            f"{text_lines[mute[0]]}: {len(mute)} of {len(texts)} texts have no audio file; first"
            f" {mute[0]}; unpack the archives completely, or remove these lines"
        )
    if too_many(len(silent), len(audio)):
        raise UserError(
            f"{', '.join(map(str, texts.paths[:2]))}: no text for {len(silent)} of {len(audio)} "
            f"audio files; first {audio[silent[0]]}; is the file complete?"
        )
    left_out = {key: f"{key}: has a text, {text_lines[key]}, but no audio file" for key in mute}
    left_out |= {key: f"{key}: {audio[key]} has no text" for key in silent}
    return Joined(sorted(texts.keys() & audio.keys()), left_out)


def too_many(missing: int, total: int) -> bool:
    """Whether so many are missing that the corpus must be damaged."""
    return missing > max(FEW, SHARE * total)
