"""Recordings that are longer than a model was trained for: where to cut them, and how to join the
results.

A recording is cut at every pause. Pieces shorter than `min_seconds` are merged again, those with
the shortest pause between them first; no window is longer than `max_seconds`. The windows keep only
as much of a pause as training utterances have at their ends: some models output text for silence.

A pause is at least 0.3 seconds in which the energy is low for the recording, or hardly changes:
the energy of speech always varies, that of silence and steady noise does not, however loud.

A piece that is too long and has no pause is cut into overlapping windows, and each is recognised.
The results for an overlap are joined so that no word is lost or doubled:

1. Tokens that both windows contain at about the same time are anchors: the text up to one of them
   comes from the left window, the text after it from the right one. Of the anchors at which a word
   ends, or else of all, it is the one nearest to the middle of the overlap.
2. Without an anchor the cut is the moment nearest to the middle at which neither window has a
   token.
3. Without such a moment it is the middle; of two tokens that then overlap, the more confident one
   is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np

from asrtool.align import Timed
from asrtool.align.words import is_han
from asrtool.registry import bounded

PAUSE = 0.3  # seconds, the shortest
LONG = 0.6  # seconds of a pause that is searched again for soft speech
JOIN = 1.0  # seconds of the longest pause across which short pieces are merged
# seconds of a pause that a window keeps on each side, at most; the rest is not recognised
MARGIN = 0.15
EDGE = 0.1  # the same, at least
SPEECH = 0.1  # seconds of speech that make a stretch worth recognising
SMOOTH = 0.05  # seconds over which the energy is averaged
LEVEL = 0.3  # of the way from quiet to loud: lower energy is a pause
CONTRAST = 0.7  # nats between quiet and loud; below that the level is meaningless
SOFT = 3.0  # the same within a long pause, to find speech softer than the rest
STEADY = 0.4  # seconds within which the energy of speech varies
ALIVE = 0.13  # nats, the least standard deviation of the energy of speech
DEEP = 16.0  # nats below the loudest (70 dB): digital silence, which is not the room's noise
TOLERANCE = 0.5  # seconds by which two windows may differ about a token
SLACK = 0.1  # seconds around a token in which no cut is made if it can be helped


@dataclass(frozen=True, kw_only=True)
class WindowsConfig:
    """Windows, in which inputs longer than `max_seconds` are recognised."""

    # null: the longest duration common in training
    max_seconds: float | None = bounded(None, least=0)
    # shorter pieces are merged with a neighbour if possible; null: from the training data
    min_seconds: float | None = bounded(None, least=0)
    # of windows cut without a pause; null: 4, or a quarter of max_seconds if that is less
    overlap_seconds: float | None = bounded(None, least=0)
    cut: Literal["pauses", "clock"] = "pauses"  # clock: every max_seconds, even within words
    # of pauses; silero: a network, needs the extra `vad`
    detector: Literal["energy", "silero"] = "energy"

    def __post_init__(self) -> None:
        if min(self.min_seconds or 0, self.overlap_seconds or 0) < 0:
            raise ValueError("min_seconds and overlap_seconds must be at least 0")
        if self.max_seconds is None:
            return
        if self.max_seconds <= 0:
            raise ValueError(f"max_seconds must be above 0, not {self.max_seconds:g}")
        if not 0 <= self.overlap <= self.max_seconds / 2:
            raise ValueError(
                f"overlap_seconds must lie between 0 and half of max_seconds ({self.max_seconds:g})"
            )
        if not 0 <= self.shortest <= self.max_seconds:
            raise ValueError(
                f"min_seconds must lie between 0 and max_seconds ({self.max_seconds:g})"
            )

    @property
    def overlap(self) -> float:
        return (
            min(4.0, self.max_seconds / 4) if self.overlap_seconds is None else self.overlap_seconds
        )

    @property
    def shortest(self) -> float:
        return self.max_seconds / 2 if self.min_seconds is None else self.min_seconds

    def within(self, shortest: float | None, longest: float) -> WindowsConfig:
        """With missing values from a model's training data: the seconds of its short and of its
        longest utterances. An overlap or a shortest piece that exceeds the longest window is
        reduced."""
        if self.max_seconds is not None:
            longest = self.max_seconds
        if self.min_seconds is not None:
            shortest = self.min_seconds
        overlap = None if self.overlap_seconds is None else min(self.overlap_seconds, longest / 2)
        shortest = longest / 2 if shortest is None else min(shortest, longest)
        return replace(self, max_seconds=longest, min_seconds=shortest, overlap_seconds=overlap)


class Window(NamedTuple):
    """A stretch of a recording, in steps of its energy contour."""

    start: int
    end: int
    speech: bool = True


# -- cutting ---------------------------------------------------------------


def plan(
    energy: np.ndarray,
    step: float,
    config: WindowsConfig,
    speech: Sequence[tuple[float, float]] | None = None,
) -> list[Window]:
    """energy (n,), the logarithm of the power every `step` seconds -> windows that cover the
    recording.

    config: with `max_seconds` set; speech: start and end in seconds of each stretch of speech, if
    another detector than the energy found them. Windows cut without a pause overlap by
    `overlap_seconds`. A recording of at most `max_seconds` is one window, speech or not.
    """
    longest = int(config.max_seconds / step)
    if len(energy) <= longest:
        return [Window(0, len(energy))]
    # Digital silence lies far below the noise of any room and would dominate every mean.
    energy = _smoothed(np.maximum(energy, energy.max() - DEEP), max(1, round(SMOOTH / step)))
    if speech is None:
        sounds = _sounds(energy, step)
    else:
        sounds = [
            (round(start / step), min(round(end / step), len(energy))) for start, end in speech
        ]
    if config.cut == "clock":
        return _by_clock(sounds, len(energy), longest, round(config.overlap / step))
    # Every window gets at least EDGE on both sides, which groups must leave room for.
    shortest, widest = round(config.shortest / step), round(JOIN / step)
    groups = _together(sounds, shortest, longest - 2 * round(EDGE / step), widest)
    return _covering(
        list(_windows(groups, energy, step, longest, round(config.overlap / step))), len(energy)
    )


def contour(
    inputs: np.ndarray, step: float, scale: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Energy contour of features (T, F), one value per frame, or of samples (T,), one per 10 ms;
    and its step in seconds.

    scale (F,): the standard deviations that the features were divided by (CMVN); with them the
    contour is in nats.
    """
    if inputs.ndim == 2:
        return inputs.mean(1) if scale is None else inputs @ (scale / len(scale)), step
    # Log-mel features average to a log-energy already; samples are squared over 10 ms.
    size = max(1, round(0.01 / step))
    count = len(inputs) // size
    power = np.square(inputs[: count * size].reshape(count, size)).mean(1)
    return np.log(power + 1e-10), step * size


def _sounds(energy: np.ndarray, step: float) -> list[tuple[int, int]]:
    """Stretches between pauses, (start, end) in steps."""
    alive = ~_steady(energy, round(STEADY / step))
    # Loud and quiet do not differ: all speech or all silence. Only the variation tells.
    if _level(energy, CONTRAST) is None:
        return _runs(alive, round(PAUSE / step), round(SPEECH / step))
    stretches: list[tuple[int, int]] = []
    for start, end in _loud(energy, alive, step, CONTRAST):
        # _loud searches long pauses separately, so the soft end of a word may be found apart
        # from its beginning: join them
        if stretches and start - stretches[-1][1] < round(PAUSE / step):
            start, _ = stretches.pop()
        stretches.append((start, end))
    return stretches


def _loud(
    energy: np.ndarray, alive: np.ndarray, step: float, contrast: float
) -> list[tuple[int, int]]:
    """Stretches that vary and are loud compared with their surroundings. Long pauses are searched
    again with a level of their own, for soft speech within them."""
    level = _level(energy, contrast)
    if level is None:
        return []
    edge = round(EDGE / step)
    runs = _runs((energy > level) & alive, round(PAUSE / step), round(SPEECH / step))
    # Borders 0, start, end, start, end, ..., n: every second pair is a pause.
    pauses = pairwise([0, *(moment for run in runs for moment in run), len(energy)])
    for start, end in list(pauses)[::2] if runs else []:
        if end - start > round(LONG / step):
            # The flanks of the neighbouring words would count as speech beside a low level.
            start, end = start + edge, end - edge
            soft = _loud(energy[start:end], alive[start:end], step, SOFT)
            runs += [(start + first, start + last) for first, last in soft]
    return sorted(runs)


def _steady(energy: np.ndarray, width: int) -> np.ndarray:
    """(n,) bool: steps within `width` steps in which the energy hardly varies: silence or steady
    noise.
    """
    mean = _smoothed(energy, width)
    # E[x^2] - E[x]^2 can become slightly negative by rounding.
    spread = np.sqrt(np.maximum(_smoothed(energy**2, width) - mean**2, 0))
    return _moving_max(spread < ALIVE, width)


def _level(energy: np.ndarray, contrast: float) -> float | None:
    """The energy that speech exceeds; None if loud and quiet differ by less than `contrast`."""
    if not len(energy):
        return None
    audible = energy[energy > energy.max() - DEEP]
    middle = (audible.min() + audible.max()) / 2
    # The medians of the lower and upper half are robust against a single click or gap.
    floor, top = np.median(audible[audible <= middle]), np.median(audible[audible >= middle])
    return floor + LEVEL * (top - floor) if top - floor >= contrast else None


def _runs(loud: np.ndarray, pause: int, least: int) -> list[tuple[int, int]]:
    """(start, end) of runs of loud steps with gaps of at most `pause` steps; at least `least` of
    the steps are loud."""
    indices = np.flatnonzero(loud)
    if not len(indices):
        return []
    breaks = np.flatnonzero(np.diff(indices) > pause)
    firsts, lasts = [0, *(breaks + 1)], [*breaks, len(indices) - 1]
    return [
        (int(indices[first]), int(indices[last]) + 1)
        for first, last in zip(firsts, lasts, strict=True)
        if last + 1 - first >= least
    ]


def _together(
    sounds: list[tuple[int, int]], shortest: int, longest: int, widest: int
) -> list[tuple[int, int]]:
    """Merge neighbours with a gap of at most `widest`, the smallest gap first, if one of them is
    shorter than `shortest` and both together are not longer than `longest`."""
    # Groups by their start and by their end, so that a merge costs O(1).
    ends, starts = dict(sounds), {end: start for start, end in sounds}
    for gap, left, right in sorted(
        (after - end, end, after) for (_, end), (after, _) in pairwise(sounds)
    ):
        start, end = starts[left], ends[right]
        if gap <= widest and end - start <= longest and min(left - start, end - right) < shortest:
            del starts[left], ends[right]
            starts[end], ends[start] = start, end
    return list(ends.items())


def _windows(
    groups: list[tuple[int, int]], energy: np.ndarray, step: float, longest: int, overlap: int
) -> Iterator[Window]:
    """Each group with its share of the pauses around it, in several windows if it is too long."""
    edge, margin = round(EDGE / step), round(MARGIN / step)
    # No window reaches beyond the middle of a pause: neighbours would recognise it twice.
    borders = [0, *((end + start) // 2 for (_, end), (start, _) in pairwise(groups)), len(energy)]
    # Lowest where a whole PAUSE is quiet, rather than at a single quiet step within a word.
    quiet = _moving_max(energy, round(PAUSE / step))
    for (start, end), first, last in zip(groups, borders, borders[1:], strict=False):
        around = max(edge, min(margin, (longest - (end - start)) // 2))
        start, end = max(first, start - around), min(last, end + around)
        while end - start > longest:
            # Both windows must stay within `longest`, and neither shall become a mere remainder.
            low, high = (
                start + longest // 2,
                min(start + longest - overlap // 2, end - longest // 2),
            )
            cut = low + _middle_of_least(quiet[low : high + 1])
            yield Window(start, cut + overlap // 2)
            start = cut + overlap // 2 - overlap
        yield Window(start, end)


def _covering(windows: list[Window], count: int) -> list[Window]:
    """The windows, and between them windows without speech: together they cover `count` steps."""
    covering, covered = [], 0
    for window in windows:
        if window.start > covered:
            covering.append(Window(covered, window.start, speech=False))
        covering.append(window)
        covered = window.end
    return covering if covered == count else [*covering, Window(covered, count, speech=False)]


def _by_clock(
    sounds: list[tuple[int, int]], count: int, longest: int, overlap: int
) -> list[Window]:
    starts = range(0, max(1, count - overlap), longest - overlap)
    bounds = [(start, min(start + longest, count)) for start in starts]
    return [
        Window(start, end, any(a < end and b > start for a, b in sounds)) for start, end in bounds
    ]


def _smoothed(values: np.ndarray, width: int) -> np.ndarray:
    """The mean of the `width` values around each one; the ends are repeated."""
    padded = np.pad(values.astype(np.float64), (width // 2, width - 1 - width // 2), mode="edge")
    sums = np.concatenate([[0.0], np.cumsum(padded)])
    return (sums[width:] - sums[:-width]) / width


def _moving_max(values: np.ndarray, width: int) -> np.ndarray:
    """The largest of the `width` values around each one; the ends are repeated."""
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, width).max(1)


def _middle_of_least(values: np.ndarray) -> int:
    """The index of the smallest value; the middle one if it occurs several times in a row."""
    index = end = int(values.argmin())
    while end + 1 < len(values) and values[end + 1] == values[index]:
        end += 1
    return (index + end) // 2


# -- joining ---------------------------------------------------------------


def join(parts: Sequence[tuple[float, float, Sequence[Timed]]]) -> list[Timed]:
    """(start, end, tokens) of each window, in seconds of the recording -> all tokens in order."""
    joined: list[Timed] = []
    before = 0.0
    for start, end, tokens in parts:
        # A window that begins where the last one ended overlaps with nothing.
        keep, take, spaced = (
            _cut(joined, tokens, start, before) if start < before else (len(joined), 0, True)
        )
        right = list(tokens[take:])
        if spaced and keep and right and not _is_glued(joined[:keep], right[0]):
            right[0] = replace(right[0], text=" " + right[0].text.lstrip())
        joined = joined[:keep] + right
        before = end
    return joined


def _is_glued(left: Sequence[Timed], first: Timed) -> bool:
    """Whether two windows are joined without a space: between Han characters."""
    visible = "".join(part.text for part in left[-3:]).rstrip()
    return (
        bool(visible and first.text.strip())
        and is_han(visible[-1])
        and is_han(first.text.strip()[0])
    )


def _cut(
    left: Sequence[Timed], right: Sequence[Timed], start: float, end: float
) -> tuple[int, int, bool]:
    """Where to join two windows that overlap from `start` to `end`: how many of the left window's
    tokens to keep, the first one of the right window to keep, and whether a space between them is
    lost otherwise."""
    middle = (start + end) / 2
    # left[tail:] and right[:head] lie in the overlap.
    tail = next((index for index, part in enumerate(left) if part.end > start), len(left))
    head = next((index for index, part in enumerate(right) if part.start >= end), len(right))
    pairs = [(tail + i, j) for i, j in _anchors(left[tail:], right[:head])]
    ends = [pair for pair in pairs if _ends_word(left, pair[0]) and _ends_word(right, pair[1])]
    if pairs:
        i, j = min(ends or pairs, key=lambda pair: abs(left[pair[0]].middle - middle))
        return i + 1, j + 1, False
    cut = _quiet_moment([*left[tail:], *right[:head]], start, end)
    keep = next((index for index, part in enumerate(left) if part.middle >= cut), len(left))
    take = next((index for index, part in enumerate(right) if part.middle >= cut), len(right))
    # Two tokens for the same moment are two hypotheses about one sound.
    if keep and take < len(right) and left[keep - 1].end > right[take].start:
        if left[keep - 1].confidence >= right[take].confidence:
            take += 1
        else:
            keep -= 1
    # The space at the join is part of the first dropped token of the left window, or of the last
    # dropped token of the right one.
    dropped = [
        *(part.text[:1] for part in left[keep : keep + 1]),
        *(part.text[-1:] for part in right[:take][-1:]),
    ]
    return keep, take, take == 0 or any(text.isspace() for text in dropped)


def _ends_word(parts: Sequence[Timed], index: int) -> bool:
    """Whether a word ends with the token."""
    if index + 1 == len(parts):
        return True
    text, after = parts[index].text, parts[index + 1].text
    return (
        after[:1].isspace()
        or text[-1:].isspace()
        or is_han(text[-1:] or " ")
        or is_han(after[:1] or " ")
    )


def _anchors(left: Sequence[Timed], right: Sequence[Timed]) -> list[tuple[int, int]]:
    """Pairs (index left, index right) of equal visible tokens at about the same time, monotonic in
    both: of all such sequences the one whose times agree best in total.
    """
    # A longest common subsequence, in which a pair gains 1 at equal times and 0 at TOLERANCE:
    # best[i, j] is that of the first i and j tokens.
    best = np.zeros((len(left) + 1, len(right) + 1))
    gain = np.zeros_like(best)
    for i, first in enumerate(left, 1):
        for j, second in enumerate(right, 1):
            if first.token == second.token and first.text.strip():
                gain[i, j] = max(0.0, 1 - abs(first.middle - second.middle) / TOLERANCE)
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
    """The moment nearest to the middle of (start, end) that is SLACK away from every token; the
    middle if there is none.
    """
    middle = (start + end) / 2
    busy = sorted((part.start - SLACK, part.end + SLACK) for part in parts if part.text.strip())
    # Busy stretches, with sentinels on both sides of the overlap; the gaps are between them.
    merged: list[tuple[float, float]] = [(-np.inf, start)]
    for first, last in [*busy, (end, np.inf)]:
        if first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    gaps = [(before[1], after[0]) for before, after in pairwise(merged)]
    moments = [min(max(middle, first), last) for first, last in gaps]
    return min(moments, key=lambda moment: abs(moment - middle), default=middle)
