"""Which utterances make up each optimizer step: utterances of similar length, up to so many seconds
with padding.

The plan of an epoch is a function of (lengths, limits, seed, epoch) alone: the number of GPUs and
workers never changes what a step sees, only how its utterances are dealt out (`slices`), so that a
run may go on with another number of GPUs.

Utterances count with the length that they are padded to at least, one of a few that recur
(asrtool/data/shapes.py). In every epoch those of one such length are shuffled, and all are cut into
batches from the shortest to the longest. So the batches of every epoch hold other utterances and
have the same shapes, and all epochs have the same number of steps.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from asrtool.data.config import BatchConfig
from asrtool.data.shapes import SECONDS, recurring_lengths

ROUNDING = 1e-9  # a batch that fills its limit exactly fits
# batches that the utterances of one padded length fill at least: with fewer the same ones always
# meet
MIXED = 2
SPREAD = 1.25  # padded lengths that become one for that lie no further apart


class BatchPlan:
    """Global batches of utterance indices, number times padded length <= `config.size`; none
    dropped, none repeated.

    lengths: seconds of each utterance, or tokens. One above the limit is a batch of its own
    (`too_long` lists those).
    """

    def __init__(
        self, lengths: Sequence[float], config: BatchConfig, seed: int = 0, shuffle: bool = True
    ) -> None:
        self.lengths = np.asarray(lengths, dtype=np.float64)
        self.padded = recurring_lengths(self.lengths, SECONDS if config.tokens is None else 1.0)
        self.config = config
        self.seed = seed
        self.shuffle = shuffle
        if shuffle:
            self._share_lengths()
        limit = config.size if config.per_device is None else min(config.size, config.per_device)
        self.too_long = np.flatnonzero(self.lengths > limit * (1 + ROUNDING)).tolist()

    def _share_lengths(self) -> None:
        """Where few utterances have a padded length, as in a small set, let them share that of
        longer ones.
        """
        lengths, counts = np.unique(self.padded, return_counts=True)
        shared, longest, number = lengths.copy(), math.inf, math.inf
        for i in range(len(lengths) - 1, -1, -1):
            if number >= MIXED * self._room(longest) or longest > SPREAD * lengths[i]:
                longest, number = lengths[i], 0
            shared[i] = longest
            number += counts[i]
        self.padded = shared[np.searchsorted(lengths, self.padded)]

    def epoch(self, number: int) -> list[list[int]]:
        """The global batches of one epoch in their order; without shuffling longest first, the same
        in every epoch.
        """
        if not self.shuffle:
            return self._cut(np.argsort(self.lengths, kind="stable"))[::-1]
        rng = np.random.Generator(np.random.PCG64([self.seed, number]))
        batches = self._cut(self._mixed(np.arange(len(self.lengths)), rng))
        return [batches[i] for i in rng.permutation(len(batches))]

    def num_batches(self, number: int) -> int:
        """Of an epoch, without planning it."""
        return self._num_batches

    @cached_property
    def _num_batches(self) -> int:
        return len(self._starts(np.sort(self.padded)))

    def _mixed(self, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The utterances `members` from the shortest padded length to the longest, in random order
        within each.
        """
        return members[np.lexsort((rng.random(len(members)), self.padded[members]))]

    def _cut(self, order: np.ndarray) -> list[list[int]]:
        """Cut the order, of ascending lengths, into batches."""
        starts = self._starts(self.padded[order])
        indices = order.tolist()
        return [
            indices[start:end]
            for start, end in zip(starts, [*starts[1:], len(indices)], strict=True)
        ]

    def _starts(self, padded: np.ndarray) -> list[int]:
        """Where batches begin that are as full as the limits allow, in a row of ascending padded
        lengths (N,).
        """
        if not len(padded):
            return []
        # of each stretch of equal lengths
        begins = np.flatnonzero(np.diff(padded, prepend=-1.0)).tolist()
        starts, room = [0], 0
        for begin, end in zip(begins, [*begins[1:], len(padded)], strict=True):
            room = self._room(padded[begin])
            # not one of these fits to the shorter ones
            if starts[-1] < begin and begin - starts[-1] >= room:
                starts.append(begin)
            starts += range(starts[-1] + room, end, room)
        # the last two share evenly, else a few leftovers would weigh as much as a full step
        if len(starts) > 1:
            first, last = starts[-2], len(padded)
            starts[-1] = min(starts[-1], max((first + last) // 2, last - room))
        return starts

    def _room(self, padded: float) -> int:
        """How many utterances of this padded length are a full batch; one is always taken."""
        return max(
            1, min(int(self.config.size * (1 + ROUNDING) / padded), self.config.max_utterances)
        )

    def slices(self, batch: Sequence[int], rank: int = 0, world: int = 1) -> list[list[int]]:
        """This rank's micro-batches of a global batch, longest first, each up to
        `max_seconds_per_device` with padding.

        As few as fit, a multiple of `world` where there are enough utterances, of similar padded
        seconds. Every rank has one at least, unless the batch has fewer utterances than there are
        ranks: then the last ranks get none.
        """
        order = sorted(batch, key=lambda i: (-self.lengths[i], i))
        lengths = self.padded[order].tolist()
        per_device = self.config.per_device or math.inf
        count = len(fill(lengths, per_device)) if math.isfinite(per_device) else 1
        count = min(math.ceil(count / world) * world, len(order))
        bounds = even_groups(lengths, count)
        loads = [(0.0, 0, r) for r in range(world)]
        mine = []
        for start, end in sorted(
            bounds, key=lambda bound: -lengths[bound[0]] * (bound[1] - bound[0])
        ):
            load, taken, owner = heapq.heappop(loads)
            heapq.heappush(loads, (load + lengths[start] * (end - start), taken + 1, owner))
            if owner == rank:
                mine.append((start, order[start:end]))
        return [group for _, group in sorted(mine)]

    def padded_seconds(self, batch: Sequence[int]) -> float:
        """Number of utterances times what the longest is padded to."""
        return len(batch) * float(self.padded[list(batch)].max(initial=0.0))


def fill(lengths: Sequence[float], limit: float) -> list[tuple[int, int]]:
    """(start, end) of groups of descending lengths: each as large as `limit` padded seconds allow,
    at least one.
    """
    bounds, start = [], 0
    while start < len(lengths):
        end = min(start + max(1, int(limit * (1 + ROUNDING) / lengths[start])), len(lengths))
        bounds.append((start, end))
        start = end
    return bounds


def even_groups(lengths: Sequence[float], count: int) -> list[tuple[int, int]]:
    """Exactly `count` groups of descending lengths whose largest padded seconds are as small as can
    be.
    """
    low, high = 0.0, sum(lengths[:1]) * len(lengths)
    for _ in range(40):  # halves the interval to 1e-12 of its size
        middle = (low + high) / 2
        low, high = (low, middle) if len(fill(lengths, middle)) <= count else (middle, high)
    bounds = fill(lengths, high)
    while len(bounds) < count:
        sizes = [
            lengths[start] * (end - start) if end - start > 1 else 0.0 for start, end in bounds
        ]
        start, end = bounds.pop(longest := int(np.argmax(sizes)))
        bounds[longest:longest] = [(start, (start + end) // 2), ((start + end) // 2, end)]
    return bounds
