"""The file `utt2shard` of a data directory: where each utterance is in tar archives (shards).

    <id> <archive> <offset> <size> <crc32>      bytes; the checksum in hexadecimal

The utterances were shuffled when the shards were written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asrtool.data.kaldi import spans
from asrtool.data.kaldi.columns import Strings
from asrtool.errors import UserError

FILE = "utt2shard"


class Member(NamedTuple):
    """One line of utt2shard."""

    archive: str
    offset: int
    size: int
    checksum: int  # zlib.crc32 of the content

    @classmethod
    def parse(cls, text: str) -> Member:
        """Raise ValueError for anything but four fields."""
        archive, offset, size, checksum = text.rsplit(maxsplit=3)
        return cls(archive, int(offset), int(size), int(checksum, 16))

    def __str__(self) -> str:
        return f"{self.archive} {self.offset} {self.size} {self.checksum:08x}"


def is_member(text: str) -> bool:
    """Whether a value of utt2shard is well formed."""
    try:
        member = Member.parse(text)
    except ValueError:
        return False
    return member.offset >= 0 and member.size > 0


class ShardIndex:
    """utt2shard of some utterances as arrays (N,) in their order.

    `archives` are paths; `archive` holds indices into them.
    """

    def __init__(self, folder: Path, ids: Iterable[str]) -> None:
        path = folder / FILE
        if not path.exists():
            raise UserError(
                f"{folder} has no {FILE}, which data.shards needs; run stage 1 with this config "
                "or asrtool make_shards"
            )
        ids = ids if isinstance(ids, Strings) else Strings.of(ids)
        self.archives: list[str] = []
        self.archive = np.full(len(ids), -1, dtype=np.int32)
        self.offset, self.size = (
            np.zeros(len(ids), dtype=np.int64),
            np.zeros(len(ids), dtype=np.int64),
        )
        self.checksum = np.zeros(len(ids), dtype=np.uint32)
        known: dict[str, int] = {}
        for rows, archives, *numbers in _members(path, ids):
            for archive in dict.fromkeys(archives):
                if archive not in known:
                    known[archive] = len(self.archives)
                    self.archives.append(located(folder, archive.decode()))
            self.archive[rows] = [known[archive] for archive in archives]
            self.offset[rows], self.size[rows], self.checksum[rows] = numbers
        lacking = np.flatnonzero(self.archive < 0)
        if len(lacking):
            raise UserError(
                f"{path}: {len(lacking)} utterances are missing; first {ids[lacking[0]]}"
            )
        self._check()

    def __len__(self) -> int:
        return len(self.archive)

    def _check(self) -> None:
        """Raise UserError for an archive that is missing, or too short for its members."""
        # the end of the last member of each archive, without a loop over utterances
        ends = np.zeros(len(self.archives), dtype=np.int64)
        np.maximum.at(ends, self.archive, self.offset + self.size)
        for archive, end in zip(self.archives, ends.tolist(), strict=True):
            if (problem := incomplete(archive, end)) is not None:
                raise UserError(problem)


def _members(path: Path, ids: Strings) -> Iterator[tuple[np.ndarray, tuple, list, list, list]]:
    """The fields of `Member`, each of many lines, and to which of `ids` the lines belong."""
    keys = ids.keys()
    order = np.argsort(keys, kind="stable")
    keys, number = keys[order], 1
    for block in spans.blocks(path):
        own = block.keys()
        found = np.minimum(np.searchsorted(keys, own), len(keys) - 1)
        # the file may list more utterances than a subset of the set has
        (mine,) = np.nonzero(keys[found] == own)
        values = block.values()[mine].tolist()
        try:
            fields = zip(*(value.rsplit(maxsplit=3) for value in values), strict=True)
            archives, offsets, sizes, checksums = fields if values else [()] * 4
            numbers = [int(text) for text in offsets], [int(text) for text in sizes]
            sums = [int(text, 16) for text in checksums]
        except ValueError:
            wrong = next(i for i, value in enumerate(values) if not is_member(value.decode()))
            raise UserError(
                f"{path}:{number + mine[wrong]}: expected <id> <archive> <offset> <size> <crc32>"
            ) from None
        yield order[found[mine]], archives, *numbers, sums
        number += len(block)


def incomplete(archive: str, end: int) -> str | None:
    """What is wrong with an archive whose last member ends at byte `end`; None if nothing is."""
    try:
        size = os.stat(archive).st_size
    except OSError as error:
        relative = "" if os.path.isabs(archive) else f" (relative paths start at {os.getcwd()})"
        return (
            f"{archive}: {(error.strerror or 'cannot be opened').lower()}{relative}; copy the "
            "shard there again"
        )
    if size < end:
        return (
            f"{archive}: incomplete, it has {size} bytes but its last member ends at byte {end};"
            " copy the shard again"
        )
    return None


def located(folder: Path, archive: str) -> str:
    """The path of an archive: as written, or beside utt2shard if the folder was moved."""
    moved = folder / os.path.basename(archive)
    return str(moved) if not os.path.exists(archive) and moved.exists() else archive
