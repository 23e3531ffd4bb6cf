"""Recordings that are longer than a model was trained for: where to cut them, and how to join what was recognised.

A recording is cut in the middle of pauses. Where the next `max_seconds` hold no pause, two windows overlap there, and
both are recognised. What they say about the overlap is joined so that no word is lost or doubled:

1. Words that both windows hold at about the same time are anchors: the left window speaks up to the anchor nearest to
   the middle of the overlap, the right one after it.
2. Without an anchor the cut is the moment nearest to the middle at which neither window hears a word.
3. Without such a moment it is the middle; of two words that then overlap the more confident one stays.

A window without speech is left out, for some models write text about silence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from asrtool.align import Word
from asrtool.align.words import is_han

PAUSE = 0.3  # seconds without a loud frame
LEVEL = 0.3  # of the way from the quietest to the loudest: what is below is no speech
SPEECH = 0.1  # seconds of loud frames that make a window worth recognising
TOLERANCE = 0.5  # seconds by which two windows may differ about a word
SLACK = 0.1  # seconds around a word in which no cut is made if it can be helped


@dataclass(frozen=True, kw_only=True)
class WindowsConfig:
    """How what is longer than `max_seconds` is recognised: in windows."""

    max_seconds: float = 30.0
    overlap_seconds: float = 4.0  # where there is no pause
    cut: Literal["pauses", "clock"] = "pauses"  # clock: every max_seconds, whatever is said there

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_seconds <= self.max_seconds / 2:
            raise ValueError(f"overlap_seconds must lie between 0 and half of max_seconds ({self.max_seconds:g})")
        if self.max_seconds < 1:
            raise ValueError(f"max_seconds must be at least 1, not {self.max_seconds:g}")


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
    longest, overlap = int(config.max_seconds / step), round(config.overlap_seconds / step)
    width = max(1, round(PAUSE / step))
    loudest = _moving_max(energy, width)
    floor, top = np.quantile(energy, (0.05, 0.95)) if len(energy) else (0.0, 0.0)
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


def join(parts: Sequence[tuple[float, float, Sequence[Word]]]) -> list[Word]:
    """(start, end, words) of each window, all in seconds of the recording -> the words of the recording."""
    joined: list[Word] = []
    for place, (start, _, words) in enumerate(parts):
        end = parts[place - 1][1] if place else start
        joined = _join(joined, words, start, end)
    return joined


def _join(left: Sequence[Word], right: Sequence[Word], start: float, end: float) -> list[Word]:
    """`start`: of the right window, `end`: of the left one."""
    if start < end:
        keep, take = _cut(left, right, start, end)
    else:
        keep, take = len(left), 0
    after = list(right[take:])
    if keep and after and take == 0:  # the right window knew of no word before its first
        after[0] = replace(after[0], glued=is_han(left[keep - 1].text[-1]) and is_han(after[0].text[0]))
    return [*left[:keep], *after]


def _cut(left: Sequence[Word], right: Sequence[Word], start: float, end: float) -> tuple[int, int]:
    """How many words of the left window stay, and from which one on those of the right."""
    middle = (start + end) / 2
    tail = next((place for place, word in enumerate(left) if word.end > start), len(left))
    head = next((place for place, word in enumerate(right) if word.start >= end), len(right))
    anchors = _anchors(left[tail:], right[:head])
    if anchors:
        one, other = min(anchors, key=lambda pair: abs(left[tail + pair[0]].middle - middle))
        return tail + one + 1, other + 1
    cut = _quiet_moment([*left[tail:], *right[:head]], start, end)
    keep = next((place for place, word in enumerate(left) if word.middle >= cut), len(left))
    take = next((place for place, word in enumerate(right) if word.middle >= cut), len(right))
    if keep and take < len(right) and left[keep - 1].end > right[take].start:
        if left[keep - 1].confidence >= right[take].confidence:
            take += 1
        else:
            keep -= 1
    return keep, take


def _anchors(left: Sequence[Word], right: Sequence[Word]) -> list[tuple[int, int]]:
    """Pairs of words, in order, that read the same at about the same time: those whose times agree best in sum."""
    best = np.zeros((len(left) + 1, len(right) + 1))
    gain = np.zeros_like(best)
    for i, one in enumerate(left, 1):
        for j, other in enumerate(right, 1):
            if one.text == other.text:
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


def _quiet_moment(words: Sequence[Word], start: float, end: float) -> float:
    """The moment nearest to the middle of start to end that is not within a word; the middle where there is none."""
    middle = (start + end) / 2
    busy = sorted((word.start - SLACK, word.end + SLACK) for word in words)
    merged: list[tuple[float, float]] = [(-np.inf, start)]
    for first, last in [*busy, (end, np.inf)]:
        if first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    gaps = [(before[1], after[0]) for before, after in pairwise(merged)]
    moments = [min(max(middle, first), last) for first, last in gaps]
    return min(moments, key=lambda moment: abs(moment - middle), default=middle)
