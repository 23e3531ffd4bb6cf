"""Scoring of a set of hypotheses.

report = score(references, hypotheses, metric="cer", normalize="zh", labels={"accent": {...}})
print(report.text())
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np

from asrtool.score.align import count_pairs, total
from asrtool.score.bootstrap import (
    SEED,
    Interval,
    bootstrap_rates,
    draw_sums,
    interval,
    intervals,
    ratio,
)
from asrtool.score.normalize import normalizer, splitter
from asrtool.score.recognition import NONE, LabelScore, score_labels
from asrtool.score.report import GroupScore, MacroAverage, ScoreReport
from asrtool.score.transcripts import TranscriptError, first_of

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

    `missing`: "error" stops where an utterance has no hypothesis, "deletions" counts all its tokens
    as deleted. A hypothesis without a reference is always an error. `labels`: label -> utterance id
    -> value, for `groups`. `recognized`: label -> (utterance id -> true value, utterance id -> what
    the model said). `speakers`: utterance id -> speaker, for intervals by speaker.
    """
    absent = check_coverage(references, hypotheses, missing)
    prepare, split = normalizer(normalize), splitter(metric)
    texts = ((text, hypotheses.get(name, "")) for name, text in references.items())
    counts = count_pairs(
        ((split(prepare(left)), split(prepare(right))) for left, right in texts), alignment
    )
    ids = tuple(references)
    units = speaker_numbers(ids, speakers)
    bounds = {"utterance": intervals(counts)}
    if units is not None and units.max() > 0:
        bounds["speaker"] = intervals(counts, units)
    groups, macro = {}, {}
    for label, values in (labels or {}).items():
        groups[label], macro[label] = _group(counts, [values[name] for name in ids], units)
    errors = counts[:, 1:].sum(axis=1)
    worst = [index for index in np.argsort(-errors, kind="stable")[:10].tolist() if errors[index]]
    runaway = np.flatnonzero(
        counts[:, [0, 1, 3]].sum(axis=1) > 2 * np.maximum(counts[:, :3].sum(axis=1), 1)
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
    """The ids without a hypothesis, where `missing` allows any; what is too few or too many is a
    `TranscriptError`.
    """
    if missing not in ("error", "deletions"):
        raise ValueError(
            f"unknown treatment of missing hypotheses '{missing}' (valid: error, deletions)"
        )
    if not references:
        raise TranscriptError("the reference holds no utterance")
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
        raise TranscriptError("; ".join(problems))
    return tuple(absent)


def speaker_numbers(ids: tuple[str, ...], speakers: Mapping[str, str] | None) -> np.ndarray | None:
    """(utterances,) numbers from 0 of the speakers, or None where they are not known."""
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
    found = dict(zip(names.tolist(), rows, strict=True))
    return {name: found[name] for name in sorted(found, key=rank)}


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
    """`spoken`: the utterances of each value. None where the table of speakers and values would be
    too large.
    """
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
        raise TranscriptError(
            f"{len(silent)} of {len(ids)} hypotheses have no label '{label}': {first_of(silent)}"
        )
    several = units if units is not None and units.max() > 0 else None
    return score_labels(
        [truth[name] for name in ids], [answers.get(name, NONE) for name in ids], several
    )
