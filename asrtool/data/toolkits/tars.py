"""The members of tar archives, by their place: wav.scp names them as `<archive>.tar:<offset>`."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from asrtool.data import audio, tree
from asrtool.errors import UserError

AUDIO = {extension.removeprefix(".") for extension in tree.EXTENSIONS}
SMALL = {"txt", "json"}  # members that are read; of others, only the place is noted


class Member(NamedTuple):
    """A file in an archive. content: of .txt and .json files."""

    archive: Path
    name: str
    offset: int
    content: bytes

    @property
    def reference(self) -> str:
        """As wav.scp names it."""
        return f"{os.path.abspath(self.archive)}:{self.offset}"

    @property
    def where(self) -> str:
        return f"{self.archive}: {self.name}"


@dataclass(frozen=True)
class Sample:
    """The members of one utterance, by their extension."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return next(iter(self.members.values())).where

    def audio(self) -> str | Member:
        """The audio, or what is wrong."""
        found = [member for kind, member in self.members.items() if kind.lower() in AUDIO]
        if len(found) == 1:
            return found[0]
        has = ", ".join(f".{kind}" for kind in self.members)
        return f"{'several audio files' if found else 'no audio file'}, only {has}"


def members(path: Path) -> Iterator[Member]:
    """The files of an archive in their order. Raises `UserError` if it is damaged or compressed."""
    with _opened(path) as archive:
        for info in archive:
            name = info.name.removeprefix("./")
            if info.isdir() or os.path.basename(name).startswith("."):
                continue
            if not info.isreg() or info.issparse():
                raise UserError(
                    f"{path}: {name} is a link or a sparse file; pack the archive again"
                )
            kind = name.rpartition(".")[2].lower()
            content = archive.extractfile(info).read() if kind in SMALL else b""
            yield Member(path, name, info.offset_data, content)


def samples(path: Path, split: Callable[[str], tuple[str, str]]) -> Iterator[Sample]:
    """Consecutive members with the same key. split: key and extension of a name."""
    for key, group in groupby(members(path), key=lambda member: split(member.name)[0]):
        sample = Sample(key)
        for member in group:
            kind = split(member.name)[1]
            if kind in sample.members:
                raise UserError(f"{member.where}: a second .{kind} of {key}; keys must differ")
            sample.members[kind] = member
        yield sample


def decoded(member: Member) -> str:
    try:
        return member.content.decode("utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{member.where}: expected UTF-8") from None


def json_of(member: Member | None) -> dict:
    """The object in a .json member; empty without one."""
    if member is None:
        return {}
    try:
        found = json.loads(decoded(member))
    except ValueError as error:
        raise UserError(f"{member.where}: expected JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{member.where}: expected a JSON object")
    return found


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    tree.need(path)
    if audio.member(f"{path}:0") is None:
        raise UserError(f"{path}: expected a tar archive, and a name that ends in .tar")
    try:
        with tarfile.open(path, "r:") as archive:
            yield archive
    except tarfile.ReadError as error:
        with open(path, "rb") as stream:
            start = stream.read(4)
        if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh" or start == b"\xfd7zX":
            raise UserError(
                f"{path}: compressed, and wav.scp can only name members of plain archives; "
                "decompress it (gunzip, bunzip2, unxz)"
            ) from None
        raise UserError(f"{path}: not a whole tar archive ({error}); copy it again") from None
