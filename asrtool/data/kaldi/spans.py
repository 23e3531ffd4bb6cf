"""Ids and values of all lines of a file at once, by array operations.

A file is read in blocks of whole lines. What `tables.split` does to a line is done here to all
lines of a block. Anything that is not valid raises `Irregular`: `tables.read` then finds out which
line it is.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from asrtool.data.kaldi import padding
from asrtool.data.kaldi.tables import Irregular

BLOCK = 1 << 20  # bytes that are searched at a time: what the processor's cache holds
LARGEST = 1 << 26  # bytes of a block's values, each padded to the longest
NEWLINE, RETURN, LAST_CONTROL = ord("\n"), ord("\r"), ord(" ")
# ASCII white space, as bytes.split() has it
IS_SPACE = np.zeros(256, dtype=bool)
IS_SPACE[list(b" \t\n\r\v\f")] = True


class Block:
    """Some lines of a file.

    data: their bytes (uint8), then a word of zeros; starts, key_ends, value_starts, ends: (N,) the
    positions of ids and of values, which have no white space around them.
    """

    def __init__(self, path: Path, data: bytes) -> None:
        self.path = path
        self.data = np.frombuffer(data + bytes(padding.WORD), np.uint8)
        text = self.data[: len(data)]
        low = np.flatnonzero(text <= LAST_CONTROL)
        kinds = text[low]
        if not IS_SPACE[kinds].all():
            if not kinds.all():
                raise Irregular(f"{path}: a byte of 0")
            low = low[IS_SPACE[kinds]]
            kinds = text[low]
        (lines,) = np.nonzero(kinds == NEWLINE)
        ends = low[lines]
        self.starts = np.concatenate([[0], ends[:-1] + 1])
        # the white space that follows a line break is the first one of its line
        self.key_ends = low[np.concatenate([[0], lines[:-1] + 1])]
        if (self.key_ends == self.starts).any() or (text[ends - 1] == RETURN).any():
            raise Irregular(f"{path}: a line without an id, or with CR LF")
        self.value_starts = np.minimum(self.key_ends + 1, ends)
        while (more := (self.value_starts < ends) & IS_SPACE[text[self.value_starts]]).any():
            self.value_starts += more
        self.ends = ends
        while (more := (self.ends > self.value_starts) & IS_SPACE[text[self.ends - 1]]).any():
            self.ends = self.ends - more
        try:
            data.decode()
        except UnicodeDecodeError:
            raise Irregular(f"{path}: not UTF-8") from None

    def __len__(self) -> int:
        return len(self.ends)

    def keys(self) -> np.ndarray:
        """(N,) the ids as bytes of numpy."""
        return self.padded(self.starts, self.key_ends)

    def values(self) -> np.ndarray:
        """(N,) the values as bytes of numpy."""
        return self.padded(self.value_starts, self.ends)

    def padded(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """(N,) the spans as bytes of numpy: an array of rows that are padded with zeros."""
        longest = int((ends - starts).max())
        if len(starts) * longest > LARGEST:
            raise Irregular(f"{self.path}: a value of {longest} bytes")
        return padding.padded(self.data, starts, ends)

    def joined(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The bytes of spans that do not overlap, in ascending order, one after another."""
        first, last = starts[0], ends[-1]
        changes = np.zeros(last - first + 1, np.int8)
        changes[starts - first] += 1
        changes[ends - first] -= 1
        inside = np.cumsum(changes[:-1], dtype=np.int8).view(bool)
        return self.data[first:last][inside]

    def behind_last(self, byte: int) -> np.ndarray:
        """(N,) the position behind the last `byte` of each value, or else the value's start."""
        places = np.flatnonzero(self.data == byte)
        found = np.searchsorted(places, self.ends) - 1
        behind = places[np.maximum(found, 0)] + 1 if len(places) else self.value_starts
        return np.where((found >= 0) & (behind > self.value_starts), behind, self.value_starts)


def blocks(path: Path) -> Iterator[Block]:
    """All lines of a file, whose last one must be complete."""
    with open(path, "rb") as stream:
        if not path.stat().st_size:
            raise Irregular(f"{path}: empty")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = 0
            while start < len(content):
                end = content.rfind(b"\n", start, start + BLOCK) + 1
                # a line may be longer than a block: spk2utt of a speaker with all utterances
                end = end or content.find(b"\n", start) + 1
                if not end:
                    raise Irregular(f"{path}: the last line has no line break")
                yield Block(path, content[start:end])
                start = end
