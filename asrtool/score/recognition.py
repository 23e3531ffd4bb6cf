"""Labels that a model recognised beside the text, such as the accent: accuracy, recall by class,
confusion.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from asrtool.score.bootstrap import Interval, draw_sums, interval, ratio, sums_by

NONE = "(none)"  # answer of an utterance without a hypothesis


@dataclass(frozen=True)
class ClassScore:
    """How many utterances of a class were recognised as such; the interval is that of the
    recall.
    """

    utterances: int
    correct: int
    interval: Interval

    @property
    def recall(self) -> float:
        return self.correct / self.utterances


@dataclass(frozen=True)
class LabelScore:
    """Accuracy over utterances; `confusion`: true value -> recognised value -> utterances."""

    classes: Mapping[str, ClassScore]
    confusion: Mapping[str, Mapping[str, int]]
    intervals: Mapping[str, Interval]  # of the accuracy, by the unit that was drawn

    @property
    def utterances(self) -> int:
        return sum(found.utterances for found in self.classes.values())

    @property
    def accuracy(self) -> float:
        return sum(found.correct for found in self.classes.values()) / self.utterances

    @property
    def mean_recall(self) -> float:
        """Each class counts once: a rare accent as much as a common one."""
        return sum(found.recall for found in self.classes.values()) / len(self.classes)

    def json(self) -> dict:
        return {
            "utterances": self.utterances,
            "accuracy": self.accuracy,
            "interval": self.intervals["utterance"],
            "intervals": dict(self.intervals),
            "mean_recall": self.mean_recall,
            "classes": {
                name: {
                    "utterances": found.utterances,
                    "correct": found.correct,
                    "recall": found.recall,
                    "interval": found.interval,
                }
                for name, found in self.classes.items()
            },
            "confusion": {name: dict(row) for name, row in self.confusion.items()},
        }

    def lines(self, label: str) -> list[str]:
        """A table: a row for each true class, a column for each recognised one."""
        answers = sorted({answer for row in self.confusion.values() for answer in row})
        width = max(len(label), *(len(name) for name in self.classes))
        heads = "".join(f"  {answer:>{max(5, len(answer))}}" for answer in answers)
        bounds = ", ".join(f"{percent(found)} by {unit}" for unit, found in self.intervals.items())
        accuracy, recall = f"{100 * self.accuracy:.2f} %", f"{100 * self.mean_recall:.2f} %"
        lines = [
            f"{label} recognised: accuracy {accuracy} (95 %: {bounds}), mean recall {recall}",
            f"{label:<{width}}    # Utt  Recall  95 % by utterance{heads}      (columns: "
            "recognised as)",
        ]
        for name, found in self.classes.items():
            cells = "".join(
                f"  {self.confusion[name].get(answer, 0):>{max(5, len(answer))}}"
                for answer in answers
            )
            row = f"{found.utterances:>9}{100 * found.recall:>8.2f}  {percent(found.interval):<17}"
            lines.append(f"{name:<{width}}{row}{cells}")
        return lines


def percent(bounds: Interval) -> str:
    """An interval as people read it."""
    return "undefined" if bounds is None else f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f}"


def score_labels(
    truth: Sequence[str], answers: Sequence[str], units: np.ndarray | None = None
) -> LabelScore:
    """Compare labels utterance by utterance; `units`: the speaker of each, 0 to n - 1, for
    intervals by speaker.
    """
    right = np.array([left == answer for left, answer in zip(truth, answers, strict=True)])
    table = np.stack([right, np.ones_like(right)], axis=1).astype(np.int64)
    values = np.array(truth)
    confusion = Counter(zip(truth, answers, strict=True))
    classes = {
        name: ClassScore(
            int((values == name).sum()),
            int(right[values == name].sum()),
            _bounds(table[values == name]),
        )
        for name in sorted(set(truth))
    }
    bounds = {"utterance": _bounds(table)}
    if units is not None:
        bounds["speaker"] = _bounds(sums_by(table, units))
    rows = {
        name: {answer: n for (left, answer), n in sorted(confusion.items()) if left == name}
        for name in classes
    }
    return LabelScore(classes, rows, bounds)


def _bounds(table: np.ndarray) -> Interval:
    sums = draw_sums(table)
    return interval(ratio(sums[:, 0], sums[:, 1]), len(table))
