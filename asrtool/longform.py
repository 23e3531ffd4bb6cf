"""Recordings that are longer than a model was trained for: where to cut them, and how to join what was recognised.

A recording is cut in the middle of pauses. Where the next `max_seconds` hold no pause, two windows overlap there, and
both are recognised. What they say about the overlap is joined so that no word is lost or doubled:

1. Tokens that both windows hold at about the same time are anchors: the left window speaks up to one of them, the right
   one after it. Of the anchors that end a word, or else of all, it is the one nearest to the middle of the overlap.
2. Without an anchor the cut is the moment nearest to the middle at which neither window hears anything.
3. Without such a moment it is the middle; of two tokens that then overlap the more confident one stays.

A window without speech is left out, for some models write text about silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from asrtool.align import Timed
from asrtool.align.words import is_han

PAUSE = 0.3  # seconds without a loud frame
LEVEL = 0.3  # of the way from the quietest to the loudest: what is below is no speech
SPEECH = 0.1  # seconds of loud frames that make a window worth recognising
TOLERANCE = 0.5  # seconds by which two windows may differ about a token
SLACK = 0.1  # seconds around a token in which no cut is made if it can be helped


@dataclass(frozen=True, kw_only=True)
class WindowsConfig:
    """How what is longer than `max_seconds` is recognised: in windows."""

    max_seconds: float = 30.0
    overlap_seconds: float | None = None  # where there is no pause; null: 4, or a quarter of a shorter max_seconds
    cut: Literal["pauses", "clock"] = "pauses"  # clock: every max_seconds, whatever is said there

    def __post_init__(self) -> None:
        if self.max_seconds < 1:
            raise ValueError(f"max_seconds must be at least 1, not {self.max_seconds:g}")
        if not 0 <= self.overlap <= self.max_seconds / 2:
            raise ValueError(f"overlap_seconds must lie between 0 and half of max_seconds ({self.max_seconds:g})")

    @property
    def overlap(self) -> float:
        return min(4.0, self.max_seconds / 4) if self.overlap_seconds is None else self.overlap_seconds


class Window(NamedTuple):
    """A stretch of a recording, in steps of its energy contour."""

    start: int
    end: int
    speech: bool = True


# -- cutting ---------------------------------------------------------------


def plan(energy: np.ndarray, step: float, config: WindowsConfig) -> list[Window]:
    """energy (n,): logarithm of the loudness of every `step` seconds -> windows that cover all of it.

    Neighbours overlap by `overlap_seconds`, or not at all where one ends in a pause.
    """
    longest, overlap = int(config.max_seconds / step), round(config.overlap / step)
    width = max(1, round(PAUSE / step))
    loudest = _moving_max(energy, width)
    floor, top = np.quantile(energy, (0.05, 0.99)) if len(energy) else (0.0, 0.0)
    threshold = floor + LEVEL * (top - floor)
    loud = np.concatenate([[0], np.cumsum(energy > threshold)])
    bounds, start = [], 0
    while len(energy) - start > longest:
        first, last = start + longest // 2, start + longest - width // 2
        quiet = first + _middle_of_least(loudest[first:last])
        if config.cut == "pauses" and loudest[quiet] <= threshold:
            bounds.append((start, quiet))
            start = quiet
            continue
        end = start + longest
        if config.cut == "pauses":
            end = min(end, quiet + overlap // 2)
        bounds.append((start, end))
        start = end - overlap
    bounds.append((start, len(energy)))
    needed = max(1, round(SPEECH / step))
    return [Window(start, end, bool(loud[end] - loud[start] >= needed)) for start, end in bounds]


def contour(inputs: np.ndarray, step: float) -> tuple[np.ndarray, float]:
    """Energy contour of features (T, F), one value a frame, or of samples (T,), one every 10 ms; and its step."""
    if inputs.ndim == 2:
        return inputs.mean(1), step
    size = max(1, round(0.01 / step))
    count = len(inputs) // size
    power = np.square(inputs[: count * size].reshape(count, size)).mean(1)
    return np.log(power + 1e-10), step * size


def _moving_max(values: np.ndarray, width: int) -> np.ndarray:
    """The largest of `width` values around each; the ends repeat."""
    if len(values) < 2:
        return values
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, width).max(1)


def _middle_of_least(values: np.ndarray) -> int:
    """The place of the least value; of a row of equal ones its middle."""
    place = end = int(values.argmin())
    while end + 1 < len(values) and values[end + 1] == values[place]:
        end += 1
    return (place + end) // 2


# -- joining ---------------------------------------------------------------


def join(parts: Sequence[tuple[float, float, Sequence[Timed]]]) -> list[Timed]:
    """(start, end, tokens) of each window, all in seconds of the recording -> the tokens of the recording."""
    joined: list[Timed] = []
    before = 0.0
    for start, end, tokens in parts:
        keep, take, spaced = _cut(joined, tokens, start, before) if start < before else (len(joined), 0, True)
        right = list(tokens[take:])
        if spaced and keep and right and not _is_glued(joined[:keep], right[0]):
            right[0] = replace(right[0], text=" " + right[0].text.lstrip())
        joined = joined[:keep] + right
        before = end
    return joined


def _is_glued(left: Sequence[Timed], first: Timed) -> bool:
    """Whether no space belongs between two windows: Han characters need none."""
    visible = "".join(part.text for part in left[-3:]).rstrip()
    return bool(visible and first.text.strip()) and is_han(visible[-1]) and is_han(first.text.strip()[0])


def _cut(left: Sequence[Timed], right: Sequence[Timed], start: float, end: float) -> tuple[int, int, bool]:
    """How many tokens of the left window, which ends at `end`, stay, from which one on those of the right, and whether
    a space is between them that neither keeps."""
    middle = (start + end) / 2
    tail = next((place for place, part in enumerate(left) if part.end > start), len(left))
    head = next((place for place, part in enumerate(right) if part.start >= end), len(right))
    pairs = [(tail + one, other) for one, other in _anchors(left[tail:], right[:head])]
    ends = [pair for pair in pairs if _ends_word(left, pair[0]) and _ends_word(right, pair[1])]
    if pairs:
        one, other = min(ends or pairs, key=lambda pair: abs(left[pair[0]].middle - middle))
        return one + 1, other + 1, False
    cut = _quiet_moment([*left[tail:], *right[:head]], start, end)
    keep = next((place for place, part in enumerate(left) if part.middle >= cut), len(left))
    take = next((place for place, part in enumerate(right) if part.middle >= cut), len(right))
    if keep and take < len(right) and left[keep - 1].end > right[take].start:
        if left[keep - 1].confidence >= right[take].confidence:
            take += 1
        else:
            keep -= 1
    dropped = [*(part.text[:1] for part in left[keep : keep + 1]), *(part.text[-1:] for part in right[:take][-1:])]
    return keep, take, take == 0 or any(text.isspace() for text in dropped)


def _ends_word(parts: Sequence[Timed], place: int) -> bool:
    """Whether a word begins behind the token."""
    if place + 1 == len(parts):
        return True
    text, after = parts[place].text, parts[place + 1].text
    return after[:1].isspace() or text[-1:].isspace() or is_han(text[-1:] or " ") or is_han(after[:1] or " ")


def _anchors(left: Sequence[Timed], right: Sequence[Timed]) -> list[tuple[int, int]]:
    """Pairs of equal visible tokens at about the same time, in order: those whose times agree best in sum."""
    best = np.zeros((len(left) + 1, len(right) + 1))
    gain = np.zeros_like(best)
    for i, one in enumerate(left, 1):
        for j, other in enumerate(right, 1):
            if one.token == other.token and one.text.strip():
                gain[i, j] = max(0.0, 1 - abs(one.middle - other.middle) / TOLERANCE)
            best[i, j] = max(best[i - 1, j], best[i, j - 1], best[i - 1, j - 1] + gain[i, j])
    pairs, i, j = [], len(left), len(right)
    while i and j:
        if gain[i, j] and best[i, j] == best[i - 1, j - 1] + gain[i, j]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        elif best[i, j] == best[i - 1, j]:
            i -= 1
        else:
            j -= 1
    return pairs[::-1]


def _quiet_moment(parts: Sequence[Timed], start: float, end: float) -> float:
    """The moment nearest to the middle of start to end with no token close by; the middle where there is none."""
    middle = (start + end) / 2
    busy = sorted((part.start - SLACK, part.end + SLACK) for part in parts if part.text.strip())
    merged: list[tuple[float, float]] = [(-np.inf, start)]
    for first, last in [*busy, (end, np.inf)]:
        if first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    gaps = [(before[1], after[0]) for before, after in pairwise(merged)]
    moments = [min(max(middle, first), last) for first, last in gaps]
    return min(moments, key=lambda moment: abs(moment - middle), default=middle)
