"""Error rates of a test set: totals, intervals, groups, and recognised labels."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from asrtool.errors import UserError
from asrtool.score.align import ErrorCounts, count_pairs, total
from asrtool.score.bootstrap import (
    CONFIDENCE,
    DRAWS,
    SEED,
    Interval,
    Intervals,
    bootstrap_rates,
    draw_sums,
    interval,
    intervals,
    ratio,
    sums_by,
)
from asrtool.score.normalize import normalizer, splitter
from asrtool.score.transcripts import first_of

NONE = "(none)"  # recognised label of an utterance without a hypothesis
WORST = 10  # number of utterances to list
RUNAWAY = 2  # an utterance with more than so many tokens per reference token is a runaway


@dataclass(frozen=True)
class ClassScore:
    """Utterances of a class, how many were recognised as such, and the interval of the recall."""

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
        return sum(score.utterances for score in self.classes.values())

    @property
    def accuracy(self) -> float:
        return sum(score.correct for score in self.classes.values()) / self.utterances

    @property
    def mean_recall(self) -> float:
        """The mean over classes, in which a rare accent counts as much as a common one."""
        return sum(score.recall for score in self.classes.values()) / len(self.classes)

    def json(self) -> dict:
        return {
            "utterances": self.utterances,
            "accuracy": self.accuracy,
            "interval": self.intervals["utterance"],
            "intervals": dict(self.intervals),
            "mean_recall": self.mean_recall,
            "classes": {
                name: {
                    "utterances": score.utterances,
                    "correct": score.correct,
                    "recall": score.recall,
                    "interval": score.interval,
                }
                for name, score in self.classes.items()
            },
            "confusion": {name: dict(row) for name, row in self.confusion.items()},
        }


def score_labels(
    truth: Sequence[str], answers: Sequence[str], units: np.ndarray | None = None
) -> LabelScore:
    """Compare labels utterance by utterance.

    units: the speaker of each, 0 to n - 1, for intervals by speaker.
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
            "recognition": {label: score.json() for label, score in self.recognized.items()},
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


TABLE_CELLS = 10_000_000
Labels = Mapping[str, Mapping[str, str]]  # label -> utterance id -> value


def score(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    *,
    metric: str = "wer",
    normalize: str = "none",
    alignment: str = "levenshtein",
    missing: str = "error",
    labels: Labels | None = None,
    recognized: Mapping[str, tuple[Mapping[str, str], Mapping[str, str]]] | None = None,
    speakers: Mapping[str, str] | None = None,
) -> ScoreReport:
    """Score texts by utterance id, in the order of the references.

    missing: "error" raises `UserError` if an utterance has no hypothesis, "deletions" counts its
    tokens as deleted; a hypothesis without a reference is always an error. labels: label -> id ->
    value. recognized: label -> (id -> true value, id -> recognised value). speakers: id -> speaker.
    """
    absent = check_coverage(references, hypotheses, missing)
    prepare, split = normalizer(normalize), splitter(metric)
    texts = ((text, hypotheses.get(name, "")) for name, text in references.items())
    counts = count_pairs(
        ((split(prepare(left)), split(prepare(right))) for left, right in texts), alignment
    )
    ids = tuple(references)
    units = speaker_numbers(ids, speakers)
    # Utterances of a speaker are not independent: intervals by speaker are wider and more reliable.
    bounds = {"utterance": intervals(counts)}
    if units is not None and units.max() > 0:
        bounds["speaker"] = intervals(counts, units)
    groups, macro = {}, {}
    for label, values in (labels or {}).items():
        groups[label], macro[label] = _group(counts, [values[name] for name in ids], units)
    errors = counts[:, 1:].sum(axis=1)
    worst = [
        index for index in np.argsort(-errors, kind="stable")[:WORST].tolist() if errors[index]
    ]
    # C + S + I is the length of the hypothesis, C + S + D that of the reference.
    runaway = np.flatnonzero(
        counts[:, [0, 1, 3]].sum(axis=1) > RUNAWAY * np.maximum(counts[:, :3].sum(axis=1), 1)
    )
    return ScoreReport(
        metric=metric,
        normalizer=normalize,
        alignment=alignment,
        total=total(counts),
        intervals=bounds,
        speakers=0 if units is None else int(units.max()) + 1,
        groups=groups,
        macro=macro,
        recognized={
            label: _recognition(label, truth, answers, ids, set(absent), units)
            for label, (truth, answers) in (recognized or {}).items()
        },
        missing=absent,
        runaway=tuple(ids[index] for index in runaway.tolist()),
        worst=tuple(ids[index] for index in worst),
        ids=ids,
        counts=counts,
    )


def check_coverage(
    references: Mapping[str, str], hypotheses: Mapping[str, str], missing: str
) -> tuple[str, ...]:
    """Return the ids without a hypothesis; raise `UserError` if ids do not match."""
    if missing not in ("error", "deletions"):
        raise ValueError(
            f"unknown treatment of missing hypotheses '{missing}' (valid: error, deletions)"
        )
    if not references:
        raise UserError("the reference holds no utterance")
    absent = [name for name in references if name not in hypotheses]
    extra = [name for name in hypotheses if name not in references]
    problems = []
    if absent and missing == "error":
        names = f"{first_of(absent)} (--missing deletions counts them as deletions)"
        problems.append(
            f"{len(absent)} of {len(references)} utterances have no hypothesis: {names}"
        )
    if extra:
        problems.append(
            f"{len(extra)} of {len(hypotheses)} hypotheses have no reference: {first_of(extra)}"
        )
    if problems:
        raise UserError("; ".join(problems))
    return tuple(absent)


def speaker_numbers(ids: tuple[str, ...], speakers: Mapping[str, str] | None) -> np.ndarray | None:
    """(utterances,) numbers of the speakers from 0, or None if they are unknown."""
    if speakers is None:
        return None
    known: dict[str, int] = {}
    return np.array([known.setdefault(speakers[name], len(known)) for name in ids], dtype=np.int64)


def rank(value: str) -> tuple:
    """Sorts label values as people would: ranges and numbers by size, then names by alphabet."""
    number = re.match(r"(under )?(-?\d+(?:\.\d+)?)(?= |$)", value)
    return (0, float(number[2]), not number[1], value) if number else (1, 0.0, False, value)


def members_of(values: list[str]) -> dict[str, np.ndarray]:
    """Value -> numbers of the utterances that have it, values in the order of `rank`."""
    names, inverse = np.unique(np.array(values), return_inverse=True)
    rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    rows_of = dict(zip(names.tolist(), rows, strict=True))
    return {name: rows_of[name] for name in sorted(rows_of, key=rank)}


def _group(
    counts: np.ndarray, values: list[str], units: np.ndarray | None
) -> tuple[dict[str, GroupScore], MacroAverage]:
    """Scores by value. Draws of utterances are independent between values; speakers are drawn once
    for all of them in the macro average, since a speaker may occur under several."""
    several = units is not None and units.max() > 0
    members = members_of(values)
    groups, rates, draws = {}, [], []
    for seed, (value, rows) in enumerate(members.items(), start=SEED):
        part = counts[rows]
        bounds = {"utterance": intervals(part, seed=seed)}
        if several:
            bounds["speaker"] = intervals(
                part, np.unique(units[rows], return_inverse=True)[1], seed
            )
        groups[value] = GroupScore(len(part), total(part), bounds)
        if groups[value].total.reference:
            rates.append(groups[value].total.rate)
            draws.append(bootstrap_rates(part, seed=seed))
    spoken = [rows for rows in members.values() if counts[rows, :3].any()]
    # a value with one utterance leaves the average unknown
    fewest = min(map(len, spoken), default=0)
    macro = {"utterance": interval(np.mean(draws, axis=0), fewest) if rates else None}
    if several:
        macro["speaker"] = _macro_by_speaker(counts, spoken, units)
    return groups, MacroAverage(float(np.mean(rates)) if rates else math.nan, macro)


def _macro_by_speaker(counts: np.ndarray, spoken: list[np.ndarray], units: np.ndarray) -> Interval:
    """The interval by speaker; None if the table of speakers and values is too large."""
    number = int(units.max()) + 1
    if not spoken or number * len(spoken) > TABLE_CELLS:
        return None
    fewest = min(len(np.unique(units[rows])) for rows in spoken)
    table = np.zeros((number, 2 * len(spoken)), dtype=np.int64)
    for column, rows in enumerate(spoken):
        part = np.stack([counts[rows, 1:].sum(axis=1), counts[rows, :3].sum(axis=1)], axis=1)
        np.add.at(table[:, 2 * column : 2 * column + 2], units[rows], part)
    sums = draw_sums(table)
    drawn = [ratio(sums[:, column], sums[:, column + 1]) for column in range(0, sums.shape[1], 2)]
    return interval(np.mean(drawn, axis=0), fewest)


def _recognition(
    label: str,
    truth: Mapping[str, str],
    answers: Mapping[str, str],
    ids: tuple[str, ...],
    absent: set[str],
    units: np.ndarray | None,
) -> LabelScore:
    silent = [name for name in ids if name not in answers and name not in absent]
    if silent:
        raise UserError(
            f"{len(silent)} of {len(ids)} hypotheses have no label '{label}': {first_of(silent)}"
        )
    several = units if units is not None and units.max() > 0 else None
    return score_labels(
        [truth[name] for name in ids], [answers.get(name, NONE) for name in ids], several
    )
