"""Recordings that are longer than a model was trained for: where to cut them, and how to join what
was recognised.

A recording is cut in every pause. Pieces that are shorter than `min_seconds` are put together
again, those with the shortest pause between them first; no window is longer than `max_seconds`. Of
a pause, the windows around it have no more than training utterances have at their ends: some models
write text about silence.

A pause is 0.3 seconds or more in which the energy is low for the recording, or hardly changes:
speech never stays the same, silence and steady noise do, however loud.

Where a piece without a pause is too long, two windows overlap there, and both are recognised. What
they say about the overlap is joined so that no word is lost or doubled:

1. Tokens that both windows hold at about the same time are anchors: the left window speaks up to
   one of them, the right one after it. Of the anchors that end a word, or else of all, it is the
   one nearest to the middle of the overlap.
2. Without an anchor the cut is the moment nearest to the middle at which neither window hears
   anything.
3. Without such a moment it is the middle; of two tokens that then overlap the more confident one
   stays.
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
LONG = 0.6  # seconds of a pause that is searched for what is said softly
JOIN = 1.0  # seconds of the longest pause over which short pieces are put together
# seconds of a pause that a window has on each side, at most; what is between is left out
MARGIN = 0.15
EDGE = 0.1  # the same at least
SPEECH = 0.1  # seconds of speech that make a stretch worth recognising
SMOOTH = 0.05  # seconds over which the energy is averaged
LEVEL = 0.3  # of the way from quiet to loud: what is below is a pause
CONTRAST = 0.7  # nats between quiet and loud; where there is less, the level tells nothing
SOFT = 3.0  # the same in a long pause, for what is said more softly than the rest
STEADY = 0.4  # seconds in which the energy of speech changes
ALIVE = 0.13  # nats, its standard deviation at least
DEEP = 16.0  # nats below the loudest (70 dB): what is quieter says nothing about the room
TOLERANCE = 0.5  # seconds by which two windows may differ about a token
SLACK = 0.1  # seconds around a token in which no cut is made if it can be helped


@dataclass(frozen=True, kw_only=True)
class WindowsConfig:
    """How what is longer than `max_seconds` is recognised: in windows."""

    max_seconds: float | None = bounded(None, least=0)  # null: what training saw in number
    # pieces that are shorter are put together if they may; null: as training saw
    min_seconds: float | None = bounded(None, least=0)
    # where there is no pause; null: 4, or a quarter of a shorter max_seconds
    overlap_seconds: float | None = bounded(None, least=0)
    cut: Literal["pauses", "clock"] = "pauses"  # clock: every max_seconds, whatever is said there
    # what finds the pauses; silero: a network, the extra `vad`
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
        """With what is not given taken from what a model was trained on: the seconds of its short
        and of its longest utterances. An overlap or a shortest piece that does not fit into the
        longest window is made to fit."""
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
    """energy (n,): logarithm of the loudness of every `step` seconds -> windows that cover all of
    it.

    config: with `max_seconds`; speech: start and end in seconds of all that is said, where another
    detector than the energy was used. Neighbours overlap by `overlap_seconds` where there is no
    pause. A recording that is short enough is one window, whatever it holds.
    """
    longest = int(config.max_seconds / step)
    if len(energy) <= longest:
        return [Window(0, len(energy))]
    energy = _smoothed(np.maximum(energy, energy.max() - DEEP), max(1, round(SMOOTH / step)))
    if speech is None:
        sounds = _sounds(energy, step)
    else:
        sounds = [
            (round(start / step), min(round(end / step), len(energy))) for start, end in speech
        ]
    if config.cut == "clock":
        return _by_clock(sounds, len(energy), longest, round(config.overlap / step))
    shortest, widest = round(config.shortest / step), round(JOIN / step)
    groups = _together(sounds, shortest, longest - 2 * round(EDGE / step), widest)
    return _covering(
        list(_windows(groups, energy, step, longest, round(config.overlap / step))), len(energy)
    )


def contour(
    inputs: np.ndarray, step: float, scale: np.ndarray | None = None
) -> tuple[np.ndarray, float]:
    """Energy contour of features (T, F), one value a frame, or of samples (T,), one every 10 ms;
    and its step.

    scale (F,): what the features were divided by (CMVN), so that the contour is in nats.
    """
    if inputs.ndim == 2:
        return inputs.mean(1) if scale is None else inputs @ (scale / len(scale)), step
    size = max(1, round(0.01 / step))
    count = len(inputs) // size
    power = np.square(inputs[: count * size].reshape(count, size)).mean(1)
    return np.log(power + 1e-10), step * size


def _sounds(energy: np.ndarray, step: float) -> list[tuple[int, int]]:
    """Stretches between pauses."""
    alive = ~_steady(energy, round(STEADY / step))
    if _level(energy, CONTRAST) is None:
        return _runs(alive, round(PAUSE / step), round(SPEECH / step))
    stretches: list[tuple[int, int]] = []
    for start, end in _loud(energy, alive, step, CONTRAST):
        # the soft end of a word comes out of the search of its pause, apart from the beginning
        if stretches and start - stretches[-1][1] < round(PAUSE / step):
            start, _ = stretches.pop()
        stretches.append((start, end))
    return stretches


def _loud(
    energy: np.ndarray, alive: np.ndarray, step: float, contrast: float
) -> list[tuple[int, int]]:
    """Stretches that are alive, and loud beside what is around them. Long pauses are looked at by
    themselves, for somebody may speak softly there."""
    level = _level(energy, contrast)
    if level is None:
        return []
    edge = round(EDGE / step)
    runs = _runs((energy > level) & alive, round(PAUSE / step), round(SPEECH / step))
    pauses = pairwise([0, *(moment for run in runs for moment in run), len(energy)])
    for start, end in list(pauses)[::2] if runs else []:
        if end - start > round(LONG / step):
            start, end = start + edge, end - edge
            soft = _loud(energy[start:end], alive[start:end], step, SOFT)
            runs += [(start + first, start + last) for first, last in soft]
    return sorted(runs)


def _steady(energy: np.ndarray, width: int) -> np.ndarray:
    """Whether a step is part of `width` steps in which the energy hardly changes: silence, or a
    steady noise.
    """
    mean = _smoothed(energy, width)
    spread = np.sqrt(np.maximum(_smoothed(energy**2, width) - mean**2, 0))
    return _moving_max(spread < ALIVE, width)


def _level(energy: np.ndarray, contrast: float) -> float | None:
    """What speech exceeds; None where loud and quiet differ by less than `contrast`."""
    if not len(energy):
        return None
    audible = energy[energy > energy.max() - DEEP]
    middle = (audible.min() + audible.max()) / 2
    floor, top = np.median(audible[audible <= middle]), np.median(audible[audible >= middle])
    return floor + LEVEL * (top - floor) if top - floor >= contrast else None


def _runs(loud: np.ndarray, pause: int, least: int) -> list[tuple[int, int]]:
    """(start, end) of runs of at least `least` loud steps, with gaps of at most `pause` steps."""
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
    """Neighbours with at most `widest` between them become one, the closest first, while one of
    them is shorter than `shortest` and both are not longer than `longest`."""
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
    """Each group with what it gets of the pauses around it; in several windows where it is too
    long.
    """
    edge, margin = round(EDGE / step), round(MARGIN / step)
    borders = [0, *((end + start) // 2 for (_, end), (start, _) in pairwise(groups)), len(energy)]
    quiet = _moving_max(energy, round(PAUSE / step))
    for (start, end), first, last in zip(groups, borders, borders[1:], strict=False):
        around = max(edge, min(margin, (longest - (end - start)) // 2))
        start, end = max(first, start - around), min(last, end + around)
        while end - start > longest:
            low, high = (
                start + longest // 2,
                min(start + longest - overlap // 2, end - longest // 2),
            )
            cut = low + _middle_of_least(quiet[low : high + 1])
            yield Window(start, cut + overlap // 2)
            start = cut + overlap // 2 - overlap
        yield Window(start, end)


def _covering(windows: list[Window], count: int) -> list[Window]:
    """With what lies between them, which holds no speech."""
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
    """The mean of `width` values around each; the ends repeat."""
    padded = np.pad(values.astype(np.float64), (width // 2, width - 1 - width // 2), mode="edge")
    sums = np.concatenate([[0.0], np.cumsum(padded)])
    return (sums[width:] - sums[:-width]) / width


def _moving_max(values: np.ndarray, width: int) -> np.ndarray:
    """The largest of `width` values around each; the ends repeat."""
    padded = np.pad(values, (width // 2, width - 1 - width // 2), mode="edge")
    return np.lib.stride_tricks.sliding_window_view(padded, width).max(1)


def _middle_of_least(values: np.ndarray) -> int:
    """The index of the least value; of several equal ones in a row the middle."""
    index = end = int(values.argmin())
    while end + 1 < len(values) and values[end + 1] == values[index]:
        end += 1
    return (index + end) // 2


# -- joining ---------------------------------------------------------------


def join(parts: Sequence[tuple[float, float, Sequence[Timed]]]) -> list[Timed]:
    """(start, end, tokens) of each window, all in seconds of the recording -> the tokens of the
    recording.
    """
    joined: list[Timed] = []
    before = 0.0
    for start, end, tokens in parts:
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
    """Whether no space belongs between two windows: Han characters need none."""
    visible = "".join(part.text for part in left[-3:]).rstrip()
    return (
        bool(visible and first.text.strip())
        and is_han(visible[-1])
        and is_han(first.text.strip()[0])
    )


def _cut(
    left: Sequence[Timed], right: Sequence[Timed], start: float, end: float
) -> tuple[int, int, bool]:
    """How many tokens of the left window, which ends at `end`, stay, from which one on those of the
    right, and whether a space is between them that neither keeps."""
    middle = (start + end) / 2
    tail = next((index for index, part in enumerate(left) if part.end > start), len(left))
    head = next((index for index, part in enumerate(right) if part.start >= end), len(right))
    pairs = [(tail + one, other) for one, other in _anchors(left[tail:], right[:head])]
    ends = [pair for pair in pairs if _ends_word(left, pair[0]) and _ends_word(right, pair[1])]
    if pairs:
        one, other = min(ends or pairs, key=lambda pair: abs(left[pair[0]].middle - middle))
        return one + 1, other + 1, False
    cut = _quiet_moment([*left[tail:], *right[:head]], start, end)
    keep = next((index for index, part in enumerate(left) if part.middle >= cut), len(left))
    take = next((index for index, part in enumerate(right) if part.middle >= cut), len(right))
    if keep and take < len(right) and left[keep - 1].end > right[take].start:
        if left[keep - 1].confidence >= right[take].confidence:
            take += 1
        else:
            keep -= 1
    dropped = [
        *(part.text[:1] for part in left[keep : keep + 1]),
        *(part.text[-1:] for part in right[:take][-1:]),
    ]
    return keep, take, take == 0 or any(text.isspace() for text in dropped)


def _ends_word(parts: Sequence[Timed], index: int) -> bool:
    """Whether a word begins behind the token."""
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
    """Pairs of equal visible tokens at about the same time, in order: those whose times agree best
    in sum.
    """
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
    """The moment nearest to the middle of start to end with no token close by; the middle where
    there is none.
    """
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
