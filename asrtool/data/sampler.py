"""Which utterances make up each optimizer step: utterances of similar length, up to so many seconds with padding.

The plan of an epoch is a function of (lengths, limits, seed, epoch) alone: the number of GPUs and workers never changes
what a step sees, only how its utterances are dealt out (`slices`), so that a run may go on with another number of GPUs.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

import numpy as np

from asrtool.data.config import BatchConfig

# Utterances are sorted by their length times a random factor from 1 - JITTER to 1 + JITTER: every epoch has other
# neighbours. The longest of a batch is then longer than its mean by about this share: the padding that mixing costs.
JITTER = 0.03
SHORTEST = 1e-3  # seconds that an utterance counts at least
ROUNDING = 1e-9  # a batch that fills its limit exactly fits


class BatchPlan:
    """Global batches of utterance indices with number times longest <= `config.size`; none dropped, none repeated.

    lengths: seconds of each utterance. One that is above the limit is a batch of its own (`too_long` lists those).
    """

    def __init__(self, lengths: Sequence[float], config: BatchConfig, seed: int = 0, shuffle: bool = True) -> None:
        self.lengths = np.maximum(np.asarray(lengths, dtype=np.float64), SHORTEST)
        self.config = config
        self.seed = seed
        self.shuffle = shuffle
        limit = config.size if config.per_device is None else min(config.size, config.per_device)
        self.too_long = np.flatnonzero(self.lengths > limit * (1 + ROUNDING)).tolist()

    def epoch(self, number: int) -> list[list[int]]:
        """The global batches of one epoch in their order; without shuffling longest first, the same in every epoch."""
        if not self.shuffle:
            return self._cut(np.argsort(self.lengths, kind="stable"))[::-1]
        rng = np.random.Generator(np.random.PCG64([self.seed, number]))
        jitter = rng.uniform(1 - JITTER, 1 + JITTER, len(self.lengths))
        batches = self._cut(np.argsort(self.lengths * jitter, kind="stable"))
        return [batches[i] for i in rng.permutation(len(batches))]

    def _cut(self, order: np.ndarray) -> list[list[int]]:
        """Cut the order into batches as full as the limits allow; the last two share what they have evenly."""
        if not len(order):
            return []
        limit = self.config.size * (1 + ROUNDING)
        indices, lengths = order.tolist(), self.lengths[order].tolist()
        starts, longest = [0], 0.0
        for i, length in enumerate(lengths):
            longest = max(longest, length)
            size = i - starts[-1] + 1
            if size > 1 and (size * longest > limit or size > self.config.max_utterances):
                starts.append(i)
                longest = length
        if len(starts) > 1:  # else a few leftovers would weigh as much as a full step
            first, last = starts[-2], len(indices)
            room = int(limit / max(lengths[first:]))
            starts[-1] = min(starts[-1], max((first + last) // 2, last - room))
        return [indices[start:end] for start, end in zip(starts, [*starts[1:], len(indices)], strict=True)]

    def slices(self, batch: Sequence[int], rank: int = 0, world: int = 1) -> list[list[int]]:
        """This rank's micro-batches of a global batch, longest first, each up to `max_seconds_per_device` with padding.

        As few as fit, a multiple of `world` where there are enough utterances, of similar padded seconds. Every rank
        has one at least, unless the batch has fewer utterances than there are ranks: then the last ranks get none.
        """
        order = sorted(batch, key=lambda i: (-self.lengths[i], i))
        lengths = self.lengths[order].tolist()
        per_device = self.config.per_device or math.inf
        count = len(fill(lengths, per_device)) if math.isfinite(per_device) else 1
        count = min(math.ceil(count / world) * world, len(order))
        bounds = even_groups(lengths, count)
        loads = [(0.0, 0, r) for r in range(world)]
        mine = []
        for start, end in sorted(bounds, key=lambda bound: -lengths[bound[0]] * (bound[1] - bound[0])):
            load, taken, owner = heapq.heappop(loads)
            heapq.heappush(loads, (load + lengths[start] * (end - start), taken + 1, owner))
            if owner == rank:
                mine.append((start, order[start:end]))
        return [group for _, group in sorted(mine)]

    def padded_seconds(self, batch: Sequence[int]) -> float:
        """Number of utterances times the longest."""
        return len(batch) * float(self.lengths[list(batch)].max(initial=0.0))


def fill(lengths: Sequence[float], limit: float) -> list[tuple[int, int]]:
    """(start, end) of groups of descending lengths: each as large as `limit` padded seconds allow, at least one."""
    bounds, start = [], 0
    while start < len(lengths):
        end = min(start + max(1, int(limit * (1 + ROUNDING) / lengths[start])), len(lengths))
        bounds.append((start, end))
        start = end
    return bounds


def even_groups(lengths: Sequence[float], count: int) -> list[tuple[int, int]]:
    """Exactly `count` groups of descending lengths whose largest padded seconds are as small as can be."""
    low, high = 0.0, sum(lengths[:1]) * len(lengths)
    for _ in range(40):  # halves the interval to 1e-12 of its size
        middle = (low + high) / 2
        low, high = (low, middle) if len(fill(lengths, middle)) <= count else (middle, high)
    bounds = fill(lengths, high)
    while len(bounds) < count:
        sizes = [lengths[start] * (end - start) if end - start > 1 else 0.0 for start, end in bounds]
        start, end = bounds.pop(place := int(np.argmax(sizes)))
        bounds[place:place] = [(start, (start + end) // 2), ((start + end) // 2, end)]
    return bounds
