"""The file `utt2shard` of a data directory: where each utterance is in tar archives (shards).

    <id> <archive> <offset> <size> <crc32>      bytes; the checksum in hexadecimal

The utterances were shuffled when the shards were written.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asrtool.data.kaldi import tables
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

    def __init__(self, folder: Path, ids: Sequence[str]) -> None:
        path = folder / FILE
        if not path.exists():
            raise UserError(
                f"{folder} has no {FILE}, which data.shards needs; run stage 1 with this config "
                "or asrtool make_shards"
            )
        indices = {key: i for i, key in enumerate(ids)}
        self.archives: list[str] = []
        # Arrays instead of a dict of members: millions of utterances take 24 bytes each.
        self.archive = np.full(len(ids), -1, dtype=np.int32)
        self.offset, self.size = (
            np.zeros(len(ids), dtype=np.int64),
            np.zeros(len(ids), dtype=np.int64),
        )
        self.checksum = np.zeros(len(ids), dtype=np.uint32)
        known: dict[str, int] = {}
        with open(path, "rb") as lines:
            for number, line in enumerate(lines, 1):
                key, value = tables.split(line)
                # The index may list more utterances than a subset of the set has.
                i = indices.get(key)
                if i is None:
                    continue
                try:
                    member = Member.parse(value)
                except ValueError:
                    raise UserError(
                        f"{path}:{number}: expected <id> <archive> <offset> <size> <crc32>"
                    ) from None
                if member.archive not in known:
                    known[member.archive] = len(self.archives)
                    self.archives.append(located(folder, member.archive))
                self.archive[i] = known[member.archive]
                self.offset[i], self.size[i] = member.offset, member.size
                self.checksum[i] = member.checksum
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
