"""Scoring of a set of hypotheses: totals, groups, intervals, and what is printed and stored of them.

    report = score(references, hypotheses, metric="cer", normalize="zh", labels={"accent": {...}})
    print(report.text())
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from asrtool.score.align import ErrorCounts, count_pairs, total
from asrtool.score.bootstrap import CONFIDENCE, DRAWS, SEED, bootstrap_rates, interval
from asrtool.score.normalize import normalizer, splitter
from asrtool.score.sclite_table import summary
from asrtool.score.transcripts import TranscriptError, first_of

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class GroupScore:
    """The score of the utterances that share a label value."""

    utterances: int
    total: ErrorCounts
    interval: Interval


@dataclass(frozen=True)
class MacroAverage:
    """The mean of the rates of a label's values, each counting once; values without a reference token are left out."""

    rate: float
    interval: Interval


@dataclass(frozen=True)
class ScoreReport:
    """The score of a set; rates and intervals are fractions; `counts` (utterances, 4) are C, S, D, I by `ids`."""

    metric: str
    normalizer: str
    alignment: str
    total: ErrorCounts
    interval: Interval
    groups: Mapping[str, Mapping[str, GroupScore]]
    macro: Mapping[str, MacroAverage]
    missing: tuple[str, ...]                # utterances without a hypothesis, counted as deletions
    worst: tuple[str, ...]                  # utterances with the most errors, most first
    ids: tuple[str, ...] = field(repr=False)
    counts: np.ndarray = field(repr=False, compare=False)

    def text(self) -> str:
        """The summary that people read and grep: sclite's, Kaldi's and WeNet's lines, interval, coverage, groups."""
        errors, name = self.total, self.metric.upper()
        header, row = summary(self.counts)
        sub, dels, ins = errors.substitutions, errors.deletions, errors.insertions
        percent = f"{100 * errors.rate:.2f}"
        shares = f"substitutions {self._share(sub)}, deletions {self._share(dels)}, insertions {self._share(ins)}"
        drawn = f"bootstrap over {len(self.ids)} utterances, {DRAWS} draws, seed {SEED}"
        lines = [
            header,
            row,
            f"%{name} {percent} [ {errors.errors} / {errors.reference}, {ins} ins, {dels} del, {sub} sub ]",
            f"Overall -> {percent} % N={errors.reference} C={errors.correct} S={sub} D={dels} I={ins}",
            f"{name} {percent} %: {shares}",
            f"95 % interval {_range(self.interval)} ({drawn})",
            f"normalizer {self.normalizer}, alignment {self.alignment}, coverage {self._coverage()}",
        ]
        for label in self.groups:
            lines += ["", *self._table(label)]
        return "\n".join(lines) + "\n"

    def json(self) -> dict:
        """What `score.json` holds; a rate or interval that does not exist is None."""
        return {
            "metric": self.metric,
            "normalizer": self.normalizer,
            "alignment": self.alignment,
            "total": _json(self.total),
            "interval": self.interval,
            "bootstrap": {"unit": "utterance", "draws": DRAWS, "seed": SEED, "confidence": CONFIDENCE},
            "utterances": len(self.ids),
            "utterances_with_errors": int((self.counts[:, 1:].sum(axis=1) > 0).sum()),
            "coverage": {
                "with_hypothesis": len(self.ids) - len(self.missing),
                "missing_counted_as_deletions": list(self.missing),
            },
            "groups": {
                label: {
                    value: {**_json(group.total), "utterances": group.utterances, "interval": group.interval}
                    for value, group in values.items()
                }
                for label, values in self.groups.items()
            },
            "macro_average": {
                label: {"rate": _finite(macro.rate), "interval": macro.interval} for label, macro in self.macro.items()
            },
            "worst": list(self.worst),
        }

    def _share(self, number: int) -> str:
        return f"{number} ({100 * number / self.total.reference:.2f} %)" if self.total.reference else str(number)

    def _coverage(self) -> str:
        count = len(self.ids)
        if not self.missing:
            return f"{count} of {count} utterances"
        names = first_of(list(self.missing))
        left = f"{len(self.missing)} without a hypothesis counted as deletions: {names}"
        return f"{count - len(self.missing)} of {count} utterances; {left}"

    def _table(self, label: str) -> list[str]:
        width = max(len(label), len("macro average"), *(len(value) for value in self.groups[label]))
        heads = "".join(f"{head:>9}" for head in ("# Utt", "# Ref", "Sub", "Del", "Ins", self.metric.upper()))
        lines = [f"{label:<{width}}{heads}  95 % interval"]
        for value, group in self.groups[label].items():
            errors = group.total
            parts = (errors.substitutions, errors.deletions, errors.insertions, errors.errors)
            cells = [str(group.utterances), str(errors.reference), *(_percent(errors, part) for part in parts)]
            lines.append(f"{value:<{width}}{''.join(f'{cell:>9}' for cell in cells)}  {_range(group.interval)}")
        macro = self.macro[label]
        lines.append(f"{'macro average':<{width}}{'':>45}{100 * macro.rate:>9.2f}  {_range(macro.interval)}")
        return lines


def score(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    *,
    metric: str = "wer",
    normalize: str = "none",
    alignment: str = "levenshtein",
    missing: str = "error",
    labels: Mapping[str, Mapping[str, str]] | None = None,
) -> ScoreReport:
    """Score texts by utterance id, in the order of the references.

    `missing`: "error" stops where an utterance has no hypothesis, "deletions" counts all its tokens as deleted. A
    hypothesis without a reference is always an error. `labels`: label name -> utterance id -> value, for `groups`.
    """
    absent = _check_coverage(references, hypotheses, missing)
    prepare, split = normalizer(normalize), splitter(metric)
    texts = ((text, hypotheses.get(name, "")) for name, text in references.items())
    counts = count_pairs(((split(prepare(left)), split(prepare(right))) for left, right in texts), alignment)
    ids = tuple(references)
    groups, macro = {}, {}
    for label, values in (labels or {}).items():
        groups[label], macro[label] = _group(counts, np.array([values[name] for name in ids]))
    errors = counts[:, 1:].sum(axis=1)
    worst = [index for index in np.argsort(-errors, kind="stable")[:10].tolist() if errors[index]]
    return ScoreReport(
        metric=metric,
        normalizer=normalize,
        alignment=alignment,
        total=total(counts),
        interval=interval(bootstrap_rates(counts)),
        groups=groups,
        macro=macro,
        missing=absent,
        worst=tuple(ids[index] for index in worst),
        ids=ids,
        counts=counts,
    )


def _check_coverage(references: Mapping[str, str], hypotheses: Mapping[str, str], missing: str) -> tuple[str, ...]:
    if missing not in ("error", "deletions"):
        raise ValueError(f"unknown treatment of missing hypotheses '{missing}' (valid: error, deletions)")
    if not references:
        raise TranscriptError("the reference holds no utterance")
    absent = [name for name in references if name not in hypotheses]
    extra = [name for name in hypotheses if name not in references]
    problems = []
    if absent and missing == "error":
        names = f"{first_of(absent)} (--missing deletions counts them as deletions)"
        problems.append(f"{len(absent)} of {len(references)} utterances have no hypothesis: {names}")
    if extra:
        problems.append(f"{len(extra)} of {len(hypotheses)} hypotheses have no reference: {first_of(extra)}")
    if problems:
        raise TranscriptError("; ".join(problems))
    return tuple(absent)


def _group(counts: np.ndarray, values: np.ndarray) -> tuple[dict[str, GroupScore], MacroAverage]:
    groups, rates, draws = {}, [], []
    for index, value in enumerate(np.unique(values).tolist()):
        part = counts[values == value]
        drawn = bootstrap_rates(part, seed=SEED + index)         # groups are drawn independently of each other
        groups[value] = GroupScore(len(part), total(part), interval(drawn))
        if groups[value].total.reference:
            rates.append(groups[value].total.rate)
            draws.append(drawn)
    if not rates:
        return groups, MacroAverage(math.nan, None)
    return groups, MacroAverage(float(np.mean(rates)), interval(np.mean(draws, axis=0)))


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


def _percent(errors: ErrorCounts, number: int) -> str:
    return f"{100 * number / errors.reference:.2f}" if errors.reference else f"{number}*"


def _range(bounds: Interval) -> str:
    return "undefined" if bounds is None else f"{100 * bounds[0]:.2f} to {100 * bounds[1]:.2f} %"
