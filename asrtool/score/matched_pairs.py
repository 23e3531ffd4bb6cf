"""The matched-pairs sentence-segment word error test of two systems on the same utterances.

Gillick and Cox, "Some statistical issues in the comparison of speech recognition algorithms",
ICASSP 1989, with the segments of NIST's sc_stats: stretches with errors of either system, ended by
two or more reference words that both systems got right, with no insertion between them. Errors
within such a segment may depend on each other, those of different segments hardly do, so the
differences per segment are taken for independent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

BOUNDARY = 2  # correct words of both systems that end a segment


@dataclass(frozen=True)
class MatchedPairs:
    """`mean`, `deviation` over segments of the second system's errors less the first's; NaN of
    fewer than two.
    """

    segments: int
    mean: float
    deviation: float

    @property
    def z(self) -> float:
        """Standard normal where the systems are equally good; infinite where all segments differ
        alike.
        """
        if self.mean == 0:
            return 0.0
        error = self.deviation / math.sqrt(self.segments) if self.segments else math.nan
        return self.mean / error if error else math.copysign(math.inf, self.mean)

    @property
    def p(self) -> float:
        """Two-sided."""
        return 1.0 if math.isnan(self.z) else math.erfc(abs(self.z) / math.sqrt(2))


def matched_pairs(differences: Sequence[int]) -> MatchedPairs:
    values = np.array(differences, dtype=np.float64)
    if len(values) < 2:
        return MatchedPairs(len(values), float(values.mean()) if len(values) else 0.0, math.nan)
    return MatchedPairs(len(values), float(values.mean()), float(values.std(ddof=1)))


def segment_differences(first: Iterable[tuple], second: Iterable[tuple]) -> list[int]:
    """Errors of `second` less those of `first` in each segment of an utterance, from two alignments
    of it.
    """
    found: list[int] = []
    difference, is_open, correct = 0, False, 0
    for (left_gap, left_wrong), (right_gap, right_wrong) in zip(
        _by_word(first), _by_word(second), strict=True
    ):
        for left, right, is_word in ((left_gap, right_gap, False), (left_wrong, right_wrong, True)):
            if left or right:
                if is_open and correct >= BOUNDARY:
                    found.append(difference)
                    difference = 0
                difference += right - left
                is_open, correct = True, 0
            elif is_word:
                correct += 1
    return [*found, difference] if is_open else found


def _by_word(alignment: Iterable[tuple]) -> list[tuple[int, int]]:
    """(insertions before it, 1 if it is wrong) of each reference word, and of the end, which is
    never wrong.
    """
    words, inserted = [], 0
    for tag, _, _ in alignment:
        if tag == "I":
            inserted += 1
        else:
            words.append((inserted, int(tag != "C")))
            inserted = 0
    return [*words, (inserted, 0)]
