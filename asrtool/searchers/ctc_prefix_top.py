"""The most probable tokens of a frame, compiled: maxima of groups of tokens tell where to look."""

from __future__ import annotations

from math import inf

import numpy as np

from asrtool.compiled import compiled

SORTED = 256  # more candidates than this are found by sorting the frame
LANES = 64  # fewest groups; a power of two


@compiled
def num_lanes(num_tokens: int) -> int:
    """Into how many groups the tokens are cut whose maxima are looked at first."""
    lanes = LANES
    while lanes * lanes < 4 * num_tokens:
        lanes *= 2
    return lanes


@compiled
def group(row: np.ndarray, maxima: np.ndarray) -> bool:
    """maxima (lanes,): those of the tokens i, lanes + i, 2 lanes + i, ..., all groups side by side;
    False for NaN.
    """
    lanes, bad = len(maxima), np.int32(0)
    for i in range(len(row)):
        bad |= np.int32(row[i] != row[i])
    maxima[:] = -inf
    for begin in range(0, len(row), lanes):
        part = row[begin : min(begin + lanes, len(row))]
        for lane in range(len(part)):
            maxima[lane] = max(maxima[lane], part[lane])
    return bad == 0


@compiled
def top(
    row: np.ndarray,
    maxima: np.ndarray,
    least: float,
    skip: np.ndarray,
    tokens: np.ndarray,
    values: np.ndarray,
) -> int:
    """The most probable tokens above `least` that may be used, best first, the smaller id first
    among equals; their number. maxima: of `group`."""
    width, count, lanes = len(tokens), 0, len(maxima)
    if width > SORTED:
        for token in np.argsort(-row, kind="mergesort"):
            if count < width and not skip[token] and row[token] > least:
                tokens[count], values[count] = token, row[token]
                count += 1
        return count
    for lane in range(min(lanes, len(row))):
        if not maxima[lane] > least or (count == width and maxima[lane] < values[width - 1]):
            continue
        for token in range(lane, len(row), lanes):
            value = row[token]
            if not value > least or skip[token]:
                continue
            if count == width and not precedes(value, token, values[width - 1], tokens[width - 1]):
                continue
            count = min(count + 1, width)
            place = count - 1
            while place > 0 and precedes(value, token, values[place - 1], tokens[place - 1]):
                values[place], tokens[place] = values[place - 1], tokens[place - 1]
                place -= 1
            values[place], tokens[place] = value, token
    return count


@compiled
def precedes(value: float, token: int, other: float, another: int) -> bool:
    return value > other or (value == other and token < another)
