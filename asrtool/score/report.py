"""What a scoring found: totals, intervals, groups, recognised labels, and the form in which
`score.json` keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from asrtool.score import summary
from asrtool.score.align import ErrorCounts
from asrtool.score.bootstrap import CONFIDENCE, DRAWS, SEED, Interval, Intervals
from asrtool.score.recognition import LabelScore


@dataclass(frozen=True)
class GroupScore:
    """The score of the utterances that share a label value; `intervals`: unit that was drawn ->
    number -> interval.
    """

    utterances: int
    total: ErrorCounts
    intervals: Intervals

    @property
    def interval(self) -> Interval:
        """Of the error rate, utterances drawn."""
        return self.intervals["utterance"]["rate"]


@dataclass(frozen=True)
class MacroAverage:
    """The mean of the rates of a label's values, each counting once; values without a reference
    token are left out.
    """

    rate: float
    intervals: Mapping[str, Interval]  # unit that was drawn -> interval

    @property
    def interval(self) -> Interval:
        return self.intervals["utterance"]


@dataclass(frozen=True)
class ScoreReport:
    """The score of a set; rates and intervals are fractions; `counts` (utterances, 4) are C, S, D,
    I by `ids`.
    """

    metric: str
    normalizer: str
    alignment: str
    total: ErrorCounts
    intervals: Intervals  # unit that was drawn, "utterance" or "speaker" -> number -> interval
    speakers: int  # 0: not known
    groups: Mapping[str, Mapping[str, GroupScore]]
    macro: Mapping[str, MacroAverage]
    recognized: Mapping[str, LabelScore]  # of hypotheses that carry labels
    missing: tuple[str, ...]  # utterances without a hypothesis, counted as deletions
    runaway: tuple[str, ...]  # utterances with more than twice as many tokens as were spoken
    worst: tuple[str, ...]  # utterances with the most errors, most first
    ids: tuple[str, ...] = field(repr=False)
    counts: np.ndarray = field(repr=False, compare=False)

    @property
    def interval(self) -> Interval:
        """Of the error rate, utterances drawn."""
        return self.intervals["utterance"]["rate"]

    @property
    def utterances_with_errors(self) -> int:
        return int(self.counts[:, 1:].any(axis=1).sum())

    def text(self) -> str:
        """What people read and grep."""
        return summary.text(self)

    def json(self) -> dict:
        """What `score.json` holds; a rate or interval that does not exist is None."""
        return {
            "metric": self.metric,
            "normalizer": self.normalizer,
            "alignment": self.alignment,
            "total": _json(self.total),
            "interval": self.interval,
            "intervals": self.intervals,
            "bootstrap": {"draws": DRAWS, "seed": SEED, "confidence": CONFIDENCE},
            "utterances": len(self.ids),
            "utterances_with_errors": self.utterances_with_errors,
            "speakers": self.speakers,
            "coverage": {
                "with_hypothesis": len(self.ids) - len(self.missing),
                "missing_counted_as_deletions": list(self.missing),
            },
            "groups": {
                label: {
                    value: {
                        **_json(group.total),
                        "utterances": group.utterances,
                        "interval": group.interval,
                        "intervals": group.intervals,
                    }
                    for value, group in values.items()
                }
                for label, values in self.groups.items()
            },
            "macro_average": {
                label: {
                    "rate": _finite(macro.rate),
                    "interval": macro.interval,
                    "intervals": macro.intervals,
                }
                for label, macro in self.macro.items()
            },
            "recognition": {label: found.json() for label, found in self.recognized.items()},
            "worst": list(self.worst),
            "runaway": list(self.runaway),
        }


def _json(errors: ErrorCounts) -> dict:
    return {
        "correct": errors.correct,
        "substitutions": errors.substitutions,
        "deletions": errors.deletions,
        "insertions": errors.insertions,
        "reference": errors.reference,
        "rate": _finite(errors.rate),
    }


def _finite(rate: float) -> float | None:
    return rate if math.isfinite(rate) else None
