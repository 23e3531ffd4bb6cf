"""Plan optimizer steps: batches of utterances of similar length, up to a limit of padded seconds.

The plan of an epoch depends only on (lengths, limits, seed, epoch). The number of GPUs and workers
does not change a step, only how its utterances are divided (`slices`), so a run may continue with
another number of GPUs.

Utterances are padded to one of a few recurring lengths (asrtool/data/shapes.py). In every epoch,
those with the same padded length are shuffled, and the sequence from shortest to longest is cut
into batches. So all epochs have batches of the same shapes with different utterances, and the same
number of steps.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from functools import cached_property
from typing import overload

import numpy as np

from asrtool.data.config import BatchConfig
from asrtool.data.shapes import SECONDS, recurring_lengths

ROUNDING = 1e-9  # relative slack, so that a batch may fill its limit exactly
# minimum number of batches per padded length: with fewer, the same utterances would be together in
# every epoch
MIXED = 2
SPREAD = 1.25  # maximum ratio of padded lengths that are merged to reach it
HALVINGS = 40  # steps of a bisection: reduce an interval to 1e-12 of its size


class Batches(Sequence[list[int]]):
    """Batches of utterance indices, as two arrays: a million numbers in a list take 40 MB.

    order: (N,) the utterances; bounds: (batches, 2) where in it each batch begins and ends.
    """

    def __init__(self, order: np.ndarray, bounds: np.ndarray) -> None:
        self._order = order
        self._bounds = bounds

    def __len__(self) -> int:
        return len(self._bounds)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...

    @overload
    def __getitem__(self, index: slice) -> Batches: ...

    def __getitem__(self, index: int | slice) -> list[int] | Batches:
        if isinstance(index, slice):
            return self.take(index)
        start, end = self._bounds[index].tolist()
        return self._order[start:end].tolist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None

    def take(self, indices: np.ndarray | slice) -> Batches:
        """Some of the batches, in this order."""
        return Batches(self._order, self._bounds[indices])

    @classmethod
    def joined(cls, groups: Sequence[Batches]) -> Batches:
        """The batches of all groups, one group after the other."""
        begins = np.cumsum([0, *(len(group._order) for group in groups)])
        bounds = [group._bounds + begin for group, begin in zip(groups, begins, strict=False)]
        return cls(np.concatenate([group._order for group in groups]), np.concatenate(bounds))


class BatchPlan:
    """Global batches of utterance indices with number times padded length <= `config.size`.

    No utterance is dropped or repeated. lengths: seconds or tokens of each utterance. An utterance
    above the limit is a batch by itself (listed in `too_long`).
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
        """Merge padded lengths with few utterances, as in a small set, with longer ones."""
        lengths, counts = np.unique(self.padded, return_counts=True)
        # From the longest length down: each length joins the group above it while that lacks
        # utterances and is not much longer; otherwise it starts a group.
        shared, longest, number = lengths.copy(), math.inf, math.inf
        for i in range(len(lengths) - 1, -1, -1):
            if number >= MIXED * self._room(longest) or longest > SPREAD * lengths[i]:
                longest, number = lengths[i], 0
            shared[i] = longest
            number += counts[i]
        self.padded = shared[np.searchsorted(lengths, self.padded)]

    def epoch(self, number: int) -> Sequence[list[int]]:
        """The global batches of one epoch; without shuffling, always the longest first."""
        if not self.shuffle:
            return self._cut(np.argsort(self.lengths, kind="stable"))[::-1]
        rng = np.random.Generator(np.random.PCG64([self.seed, number]))
        batches = self._cut(self._mixed(self.members(number), rng))
        return batches.take(rng.permutation(len(batches)))

    def members(self, number: int) -> np.ndarray:
        """The utterances of an epoch, in the order of the set."""
        return np.arange(len(self.lengths))

    def num_batches(self, number: int) -> int:
        """Number of batches in an epoch."""
        return self._num_batches

    @cached_property
    def _num_batches(self) -> int:
        return len(self._starts(np.sort(self.padded)))

    def _mixed(self, members: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The utterances `members` by ascending padded length, in random order within each."""
        return members[np.lexsort((rng.random(len(members)), self.padded[members]))]

    def _cut(self, order: np.ndarray) -> Batches:
        """Cut utterances of ascending lengths into batches."""
        starts = self._starts(self.padded[order])
        bounds = np.array([starts, [*starts[1:], len(order)]], np.int64).reshape(2, -1).T
        return Batches(order.astype(np.int32), bounds)

    def _starts(self, padded: np.ndarray) -> list[int]:
        """Starts of batches that are as full as the limits allow; lengths (N,) are ascending."""
        if not len(padded):
            return []
        # All utterances of a run of equal lengths take the same room, so full batches are a range,
        # without a loop over utterances.
        begins = np.flatnonzero(np.diff(padded, prepend=-1.0)).tolist()
        starts, room = [0], 0
        for begin, end in zip(begins, [*begins[1:], len(padded)], strict=True):
            room = self._room(padded[begin])
            # the open batch of shorter utterances has no room for one of this length
            if starts[-1] < begin and begin - starts[-1] >= room:
                starts.append(begin)
            starts += range(starts[-1] + room, end, room)
        # Balance the last two batches: a small last batch would count as much as a full step.
        if len(starts) > 1:
            first, last = starts[-2], len(padded)
            starts[-1] = min(starts[-1], max((first + last) // 2, last - room))
        return starts

    def _room(self, padded: float) -> int:
        """Size of a full batch of utterances of this padded length; at least one."""
        return max(
            1, min(int(self.config.size * (1 + ROUNDING) / padded), self.config.max_utterances)
        )

    def slices(self, batch: Sequence[int], rank: int = 0, world: int = 1) -> list[list[int]]:
        """This rank's micro-batches of a global batch, longest first.

        Each has up to `max_seconds_per_device` with padding. Their number is the smallest multiple
        of `world` that allows this (if there are enough utterances), and their padded seconds are
        similar. Every rank has at least one, unless there are fewer utterances than ranks: then
        the last ranks have none.
        """
        # Every rank computes the same division and takes its part, without communication.
        order = sorted(batch, key=lambda i: (-self.lengths[i], i))
        lengths = self.padded[order].tolist()
        per_device = self.config.per_device or math.inf
        count = len(fill(lengths, per_device)) if math.isfinite(per_device) else 1
        count = min(math.ceil(count / world) * world, len(order))
        bounds = even_groups(lengths, count)
        # The largest group goes to the rank with the least work so far. Ties go to the rank with
        # fewer groups, then to the lower one, so that no rank stays empty while another has two.
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
        """Number of utterances times the length of the longest."""
        return len(batch) * float(self.padded[list(batch)].max(initial=0.0))


def fill(lengths: Sequence[float], limit: float) -> list[tuple[int, int]]:
    """(start, end) of groups of descending lengths, each as large as `limit` allows."""
    bounds, start = [], 0
    while start < len(lengths):
        end = min(start + max(1, int(limit * (1 + ROUNDING) / lengths[start])), len(lengths))
        bounds.append((start, end))
        start = end
    return bounds


def even_groups(lengths: Sequence[float], count: int) -> list[tuple[int, int]]:
    """Exactly `count` groups of descending lengths that minimise the largest padded seconds."""
    low, high = 0.0, sum(lengths[:1]) * len(lengths)
    # bisection over the limit: `fill` makes fewer groups the larger it is
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if len(fill(lengths, middle)) <= count else (middle, high)
    bounds = fill(lengths, high)
    # with groups to spare, split the most expensive one: less padding, and every rank gets one
    while len(bounds) < count:
        sizes = [
            lengths[start] * (end - start) if end - start > 1 else 0.0 for start, end in bounds
        ]
        start, end = bounds.pop(longest := int(np.argmax(sizes)))
        bounds[longest:longest] = [(start, (start + end) // 2), ((start + end) // 2, end)]
    return bounds
