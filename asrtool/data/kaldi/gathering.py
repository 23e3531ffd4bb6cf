"""Columns that grow block by block, while a file is read.

`add(block, rows)` takes the values of a block (spans.py), which belong to the utterances `rows`
(N,); `column(size)` gives the column of `size` utterances. Values that are not valid raise
`Irregular`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np

from asrtool.data.kaldi import padding
from asrtool.data.kaldi.columns import Coded, Strings
from asrtool.data.kaldi.spans import Block
from asrtool.data.kaldi.tables import Irregular

PIPE = ord("|")
WIDEST = 8  # the longest id may be so many times as long as they are on average
FEW = 1 << 20  # bytes in which any ids fit


class Column(Protocol):
    def add(self, block: Block, rows: np.ndarray) -> None: ...
    def column(self, size: int) -> Strings | Coded | np.ndarray | None: ...


class Ids:
    """The ids of the utterances, in ascending order."""

    def __init__(self) -> None:
        self._keys: list[np.ndarray] = []
        self._buffers: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._last = b""

    def add(self, block: Block, rows: np.ndarray) -> None:
        keys = block.keys()
        buffer, sizes = padding.packed(keys)
        if not (keys[0] > self._last and (keys[1:] > keys[:-1]).all()):
            raise Irregular(f"{block.path}: not sorted")
        if not buffer.tobytes().decode().isprintable():
            raise Irregular(f"{block.path}: ids with invisible characters")
        self._last = keys[-1]
        self._keys.append(keys)
        self._buffers.append(buffer)
        self._sizes.append(sizes)

    def column(self, size: int) -> Strings:
        return Strings.cut(self._buffers, self._sizes)

    def keys(self) -> np.ndarray:
        """(N,) the ids as bytes of numpy."""
        width = max(keys.dtype.itemsize for keys in self._keys)
        number = sum(map(len, self._keys))
        if number * width > max(FEW, WIDEST * sum(map(len, self._buffers))):
            raise Irregular("an id much longer than the others")
        return np.concatenate(self._keys)


class Texts:
    """Transcripts, which may be empty."""

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []

    def add(self, block: Block, rows: np.ndarray) -> None:
        self._buffers.append(block.joined(block.value_starts, block.ends))
        self._sizes.append(block.ends - block.value_starts)

    def column(self, size: int) -> Strings:
        return Strings.cut(self._buffers, self._sizes)


class Values:
    """Speakers, labels: values that many utterances share. words: white space is not allowed."""

    def __init__(self, words: bool = False) -> None:
        self._words = words
        self._known: dict[bytes, int] = {}
        self._rows: list[np.ndarray] = []
        self._codes: list[np.ndarray] = []

    def add(self, block: Block, rows: np.ndarray) -> None:
        expect_values(block)
        self._add(block.values(), rows)

    def _add(self, values: np.ndarray, rows: np.ndarray) -> None:
        # ids are sorted, so equal values mostly follow one another
        different, times = padding.runs(values)
        codes = [self._known.setdefault(value, len(self._known)) for value in different]
        self._codes.append(np.repeat(np.array(codes, np.int32), times))
        self._rows.append(rows)

    def column(self, size: int) -> Coded:
        if self._words and any(len(value.split()) != 1 for value in self._known):
            raise Irregular("a value of two words")
        codes = np.full(size, -1, np.int32)
        codes[np.concatenate(self._rows)] = np.concatenate(self._codes)
        return Coded(codes, Strings.of_bytes(list(self._known)))


class Paths(Values):
    """Paths or references: the part up to the last `separator` is shared."""

    def __init__(self, separator: int) -> None:
        super().__init__()
        self._separator = separator
        self._tails: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []

    def add(self, block: Block, rows: np.ndarray) -> None:
        expect_values(block)
        commands = block.data[block.ends - 1] == PIPE
        cut = np.where(commands, block.value_starts, block.behind_last(self._separator))
        self._add(block.padded(block.value_starts, cut), rows)
        tails, sizes = padding.packed(block.padded(cut, block.ends))
        self._tails.append(tails)
        self._sizes.append(sizes)

    def column(self, size: int) -> Coded:
        heads = super().column(size)
        return Coded(heads.codes, heads.values, Strings.cut(self._tails, self._sizes))


class Numbers:
    """Positive numbers. parse: float or int; NaN or -1 where there is none."""

    def __init__(self, parse: Callable[[bytes], float]) -> None:
        self._parse = parse
        self._rows: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []

    def add(self, block: Block, rows: np.ndarray) -> None:
        expect_values(block)
        numbers = parsed(block.values().tolist(), self._parse)
        if not ((numbers > 0) & (numbers < np.inf)).all():
            raise Irregular(f"{block.path}: not positive")
        self._rows.append(rows)
        self._numbers.append(numbers)

    def column(self, size: int) -> np.ndarray:
        numbers = np.concatenate(self._numbers)
        made = np.full(size, np.nan if self._parse is float else -1, numbers.dtype)
        made[np.concatenate(self._rows)] = numbers
        return made


class Segments:
    """Stretches of recordings, given by ids (M,) and paths (M,)."""

    def __init__(self, ids: list[bytes], paths: list[bytes]) -> None:
        self._ids, self._paths = ids, paths
        self._index = {key: number for number, key in enumerate(ids)}
        self._codes: list[np.ndarray] = []
        self._starts: list[np.ndarray] = []
        self._ends: list[np.ndarray] = []

    def add(self, block: Block, rows: np.ndarray) -> None:
        lines = [value.split() for value in block.values().tolist()]
        if set(map(len, lines)) != {3}:
            raise Irregular(f"{block.path}: not a recording, a start and an end")
        recordings, starts, ends = zip(*lines, strict=True)
        try:
            codes = [self._index[recording] for recording in recordings]
        except KeyError:
            raise Irregular(f"{block.path}: a recording that is not in wav.scp") from None
        self._codes.append(np.array(codes, np.int32))
        start, end = parsed(starts, float), parsed(ends, float)
        to_end = end == -1
        if not ((start >= 0) & (start < np.inf) & ((start < end) | to_end) & (end < np.inf)).all():
            raise Irregular(f"{block.path}: not a stretch of time")
        end[to_end] = np.nan
        self._starts.append(start)
        self._ends.append(end)

    def columns(self) -> dict[str, Coded | np.ndarray]:
        """The columns of `Columns` that segments have."""
        codes, starts = np.concatenate(self._codes), np.concatenate(self._starts)
        return {
            "recordings": Coded(codes, Strings.of_bytes(self._ids)),
            "audio": Coded(codes, Strings.of_bytes(self._paths)),
            "starts": starts,
            "durations": np.concatenate(self._ends) - starts,
        }


class Checked:
    """Values that no utterance has (vad.scp, utt2shard): each must be valid. check: of a value."""

    def __init__(self, check: Callable[[str], bool]) -> None:
        self._check = check

    def add(self, block: Block, rows: np.ndarray) -> None:
        if not all(self._check(value.decode()) for value in block.values().tolist()):
            raise Irregular(f"{block.path}: a value that is not valid")

    def column(self, size: int) -> None:
        return None


def parsed(values: list[bytes], parse: Callable[[bytes], float]) -> np.ndarray:
    """Numbers (N,), of float64 or int64."""
    try:
        return np.fromiter(
            map(parse, values), np.float64 if parse is float else np.int64, len(values)
        )
    except (ValueError, OverflowError):
        raise Irregular("not a number") from None


def expect_values(block: Block) -> None:
    if not (block.ends > block.value_starts).all():
        raise Irregular(f"{block.path}: a line without a value")
