"""Short strings as rows of one array: NumPy's type S, bytes that are padded with zeros."""

from __future__ import annotations

import numpy as np

WORD = 8  # bytes
# MASKS[n] keeps the first n bytes of a little-endian word
MASKS = np.array([(1 << 8 * n) - 1 for n in range(WORD + 1)], dtype="<u8")


def padded(data: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(N,) the bytes from `starts` to `ends` (N,); `data` goes on for a word after the last."""
    sizes = ends - starts
    words = max(1, -(-int(sizes.max()) // WORD))
    # every position as the start of a word
    unaligned = np.ndarray((len(data) - WORD + 1,), "<u8", data, strides=(1,))
    rows = np.empty((len(sizes), words), "<u8")
    for number in range(words):
        before = number * WORD
        places = np.minimum(starts + before, len(unaligned) - 1)
        rows[:, number] = unaligned[places] & MASKS[np.clip(sizes - before, 0, WORD)]
    return rows.view(f"S{words * WORD}")[:, 0]


def packed(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N,) one after another without the padding, uint8, and the bytes (N,) of each."""
    width = rows.dtype.itemsize
    sizes = np.char.str_len(rows)
    return rows.view(np.uint8).reshape(len(rows), width)[np.arange(width) < sizes[:, None]], sizes


def runs(rows: np.ndarray) -> tuple[list[bytes], np.ndarray]:
    """The value of each stretch of equal rows, and the length of each stretch."""
    begins = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
    return rows[begins].tolist(), np.diff(begins, append=len(rows))
