"""Two systems on the same utterances: whether their difference is more than chance, and where it
comes from.

The bootstrap is paired: a draw takes the same utterances (or speakers) for both systems, so that
the difficulty they share cancels out (Bisani and Ney, ICASSP 2004). Differences are second minus
first: below 0 the second is better.

The significance test is the matched-pairs sentence-segment word error test of Gillick and Cox,
"Some statistical issues in the comparison of speech recognition algorithms", ICASSP 1989, with the
segments of NIST's sc_stats: stretches with errors of either system, ended by two or more reference
words that both systems got right, with no insertion between them. Errors within a segment may
depend on each other, but those of different segments hardly do, so the differences per segment are
treated as independent.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from asrtool.log import plural
from asrtool.score.align import ErrorCounts, align, count_pairs, total
from asrtool.score.bootstrap import (
    DRAWS,
    SEED,
    Interval,
    draw_sums,
    interval,
    numbers,
    ratio,
    sums_by,
    utterance_table,
)
from asrtool.score.normalize import normalizer, splitter
from asrtool.score.scoring import Labels, check_coverage, members_of, speaker_numbers

BOUNDARY = 2  # words that both systems got right, which end a segment
EXACT = 1000  # up to so many utterances, the sign test sums binomial probabilities


@dataclass(frozen=True)
class MatchedPairs:
    """Mean and standard deviation over segments of the second system's errors minus the first's; a
    deviation of NaN for fewer than two segments.
    """

    segments: int
    mean: float
    deviation: float

    @property
    def z(self) -> float:
        """Standard normal if the systems are equal; infinite if all segments differ equally."""
        if self.mean == 0:
            return 0.0
        error = self.deviation / math.sqrt(self.segments) if self.segments else math.nan
        return self.mean / error if error else math.copysign(math.inf, self.mean)

    @property
    def p(self) -> float:
        """The two-sided p-value."""
        return 1.0 if math.isnan(self.z) else math.erfc(abs(self.z) / math.sqrt(2))


def matched_pairs(differences: Sequence[int]) -> MatchedPairs:
    values = np.array(differences, dtype=np.float64)
    if len(values) < 2:
        return MatchedPairs(len(values), float(values.mean()) if len(values) else 0.0, math.nan)
    return MatchedPairs(len(values), float(values.mean()), float(values.std(ddof=1)))


def segment_differences(first: Iterable[tuple], second: Iterable[tuple]) -> list[int]:
    """Errors of `second` minus those of `first` in each segment of one utterance."""
    differences: list[int] = []
    difference, is_open, correct = 0, False, 0
    for (left_gap, left_wrong), (right_gap, right_wrong) in zip(
        _by_word(first), _by_word(second), strict=True
    ):
        # the insertions before a word, then the word: an insertion restarts the count of correct
        # words, but is not one itself
        for left, right, is_word in ((left_gap, right_gap, False), (left_wrong, right_wrong, True)):
            if left or right:
                if is_open and correct >= BOUNDARY:
                    differences.append(difference)
                    difference = 0
                difference += right - left
                is_open, correct = True, 0
            elif is_word:
                correct += 1
    return [*differences, difference] if is_open else differences


def _by_word(alignment: Iterable[tuple]) -> list[tuple[int, int]]:
    """For each reference word, the insertions before it and 1 if it is wrong; likewise for the end,
    which is never wrong.
    """
    words, inserted = [], 0
    for tag, _, _ in alignment:
        if tag == "I":
            inserted += 1
        else:
            words.append((inserted, int(tag != "C")))
            inserted = 0
    return [*words, (inserted, 0)]


@dataclass(frozen=True)
class RateDifference:
    """The values and the difference of one number, as fractions; `better`: by unit, the share of
    draws in which the second system is strictly better.
    """

    first: float
    second: float
    intervals: Mapping[str, Interval]
    better: Mapping[str, float]

    @property
    def value(self) -> float:
        return self.second - self.first

    def json(self) -> dict:
        first, second = (
            value if math.isfinite(value) else None for value in (self.first, self.second)
        )
        value = self.value if first is not None and second is not None else None
        return {
            "first": first,
            "second": second,
            "difference": value,
            "intervals": dict(self.intervals),
            "second_better": dict(self.better),
        }


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`; `errors` (utterances, 2) of both systems, in the order of `ids`."""

    metric: str
    normalizer: str
    alignment: str
    totals: tuple[ErrorCounts, ErrorCounts]
    numbers: Mapping[str, RateDifference]  # the numbers of score.json
    pairs: MatchedPairs
    groups: Mapping[str, Mapping[str, RateDifference]]  # error rates by label and value
    # reference word -> times spoken, wrong in first, in second
    words: Mapping[str, tuple[int, int, int]]
    # word -> insertions by first, by second; where they differ
    inserted: Mapping[str, tuple[int, int]]
    speakers: int
    ids: tuple[str, ...] = field(repr=False)
    errors: np.ndarray = field(repr=False, compare=False)

    @property
    def wins(self) -> tuple[int, int, int]:
        """Utterances in which the second has fewer errors, more, as many."""
        change = np.sign(self.errors[:, 1] - self.errors[:, 0])
        return int((change < 0).sum()), int((change > 0).sum()), int((change == 0).sum())

    @property
    def sign_test(self) -> float:
        """Two-sided p that wins and losses are tosses of a fair coin."""
        better, worse, _ = self.wins
        tosses, fewer = better + worse, min(better, worse)
        if tosses > EXACT:  # normal approximation, corrected for continuity
            return min(1.0, math.erfc(max(0.0, abs(better - worse) - 1) / math.sqrt(2 * tosses)))
        return min(1.0, 2 * sum(math.comb(tosses, k) for k in range(fewer + 1)) / 2**tosses)

    def changed(self, count: int, better: bool) -> list[tuple[str, int, int]]:
        """Utterances that gained (or lost) most: id, errors of the first, of the second."""
        change = self.errors[:, 1] - self.errors[:, 0]
        order = np.argsort(change if better else -change, kind="stable")[:count].tolist()
        rows = [(self.ids[row], *self.errors[row].tolist()) for row in order]
        return [row for row in rows if (row[2] < row[1] if better else row[2] > row[1])]

    def changed_words(self, count: int, better: bool) -> list[tuple[str, int, int, int]]:
        """Words that are wrong less (or more) often: word, count, wrong in first, in second."""
        sign = 1 if better else -1
        rows = [(word, *row) for word, row in self.words.items() if sign * (row[1] - row[2]) > 0]
        return sorted(rows, key=lambda row: (sign * (row[3] - row[2]), row[0]))[:count]

    def json(self) -> dict:
        better, worse, same = self.wins
        pairs = self.pairs
        return {
            "metric": self.metric,
            "normalizer": self.normalizer,
            "alignment": self.alignment,
            "utterances": len(self.ids),
            "speakers": self.speakers,
            "numbers": {name: number.json() for name, number in self.numbers.items()},
            "matched_pairs": {
                "segments": pairs.segments,
                "mean": pairs.mean,
                "p": pairs.p,
                "deviation": None if math.isnan(pairs.deviation) else pairs.deviation,
                "z": pairs.z if math.isfinite(pairs.z) else None,
            },
            "utterances_changed": {
                "better": better,
                "worse": worse,
                "same": same,
                "sign_test_p": self.sign_test,
            },
            "groups": {
                label: {value: number.json() for value, number in values.items()}
                for label, values in self.groups.items()
            },
            "words": {word: list(row) for word, row in self.words.items() if row[1] != row[2]},
            "inserted": {word: list(row) for word, row in self.inserted.items()},
        }


def compare(
    references: Mapping[str, str],
    first: Mapping[str, str],
    second: Mapping[str, str],
    *,
    metric: str = "wer",
    normalize: str = "none",
    alignment: str = "levenshtein",
    missing: str = "error",
    labels: Labels | None = None,
    speakers: Mapping[str, str] | None = None,
) -> Comparison:
    """Compare two sets of hypotheses; arguments as in `score`."""
    for texts in (first, second):
        check_coverage(references, texts, missing)
    prepare, split = normalizer(normalize), splitter(metric)
    ids = tuple(references)
    units = speaker_numbers(ids, speakers)
    units = units if units is not None and units.max() > 0 else None
    spoken = [split(prepare(text)) for text in references.values()]
    written = [[split(prepare(texts.get(name, ""))) for name in ids] for texts in (first, second)]
    counts = [count_pairs(zip(spoken, side, strict=True), alignment) for side in written]
    errors = np.stack([part[:, 1:].sum(axis=1) for part in counts], axis=1)
    words = _Words(spoken)
    segments: list[int] = []
    for row in np.flatnonzero(errors.any(axis=1)).tolist():
        both = [align(spoken[row], side[row], alignment) for side in written]
        segments += segment_differences(*both)
        for side, alignment_found in enumerate(both):
            words.add(side, alignment_found)
    return Comparison(
        metric=metric,
        normalizer=normalize,
        alignment=alignment,
        totals=(total(counts[0]), total(counts[1])),
        numbers=_differences(counts, units),
        pairs=matched_pairs(segments),
        groups={
            label: {
                value: _differences(
                    [part[rows] for part in counts],
                    None if units is None else np.unique(units[rows], return_inverse=True)[1],
                    seed,
                )["rate"]
                for seed, (value, rows) in enumerate(
                    members_of([values[name] for name in ids]).items(), start=SEED
                )
            }
            for label, values in (labels or {}).items()
        },
        words=words.table(),
        inserted={
            word: pair for word, pair in words.inserted_table().items() if pair[0] != pair[1]
        },
        speakers=0 if units is None else int(units.max()) + 1,
        ids=ids,
        errors=errors,
    )


def _differences(
    counts: Sequence[np.ndarray], units: np.ndarray | None, seed: int = SEED
) -> dict[str, RateDifference]:
    """Name -> difference; utterances are drawn in pairs, and speakers if `units` is given."""
    table = np.concatenate([utterance_table(part) for part in counts], axis=1)
    tables = {"utterance": table}
    if units is not None and units.max() > 0:
        tables["speaker"] = sums_by(table, units)
    width = table.shape[1] // 2
    sides = [
        numbers(table[:, side * width :][:, :width].sum(axis=0, keepdims=True)) for side in (0, 1)
    ]
    drawn = {}
    for unit, rows in tables.items():
        sums = draw_sums(rows, seed=seed)
        left, right = numbers(sums[:, :width]), numbers(sums[:, width:])
        drawn[unit] = {name: right[name] - left[name] for name in left}
    return {
        name: RateDifference(
            float(sides[0][name][0]),
            float(sides[1][name][0]),
            {unit: interval(values[name], len(tables[unit])) for unit, values in drawn.items()},
            {unit: _share_better(values[name], name) for unit, values in drawn.items()},
        )
        for name in sides[0]
    }


def _share_better(values: np.ndarray, name: str) -> float:
    better = values > 0 if name == "correct" else values < 0
    return float(ratio(np.array([better.sum()]), np.array([(~np.isnan(values)).sum()]))[0])


class _Words:
    """How often each reference word was spoken, and was wrong in either system."""

    def __init__(self, spoken: Sequence[Sequence[str]]) -> None:
        self.spoken = Counter(word for words in spoken for word in words)
        self.wrong: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self.inserted: tuple[Counter[str], Counter[str]] = (Counter(), Counter())

    def add(self, side: int, alignment: Sequence[tuple]) -> None:
        for tag, reference, hypothesis in alignment:
            if tag == "I":
                self.inserted[side][hypothesis] += 1
            elif tag != "C":
                self.wrong[side][reference] += 1

    def table(self) -> dict[str, tuple[int, int, int]]:
        names = sorted(self.wrong[0].keys() | self.wrong[1].keys())
        return {
            word: (self.spoken[word], self.wrong[0][word], self.wrong[1][word]) for word in names
        }

    def inserted_table(self) -> dict[str, tuple[int, int]]:
        names = sorted(self.inserted[0].keys() | self.inserted[1].keys())
        return {word: (self.inserted[0][word], self.inserted[1][word]) for word in names}


SHOWN = 10  # utterances and words of a list
LEVEL = 0.05  # significance level of the verdict


def text(comparison: Comparison) -> str:
    """Numbers, tests, utterances, words and groups that changed."""
    lines = [
        f"{comparison.metric.upper()}, normalizer {comparison.normalizer}, "
        f"alignment {comparison.alignment}, "
        f"{plural(comparison.totals[0].reference, 'token')} in "
        f"{plural(len(comparison.ids), 'utterance')}"
        + (f" of {plural(comparison.speakers, 'speaker')}" if comparison.speakers else ""),
        "",
        *_table(
            "%",
            {
                comparison.metric.upper() if name == "rate" else name.replace("_", " "): difference
                for name, difference in comparison.numbers.items()
            },
        ),
        f"bootstrap in pairs: {DRAWS} draws, seed {SEED}; differences in points",
        "",
        *_tests(comparison),
        *_utterances(comparison),
        *_words(comparison),
    ]
    for label, values in comparison.groups.items():
        lines += ["", *_table(label, values)]
    return "\n".join(lines) + "\n"


def verdict(comparison: Comparison) -> str:
    """One sentence that says which system is better by the matched-pairs test."""
    p, value = comparison.pairs.p, comparison.numbers["rate"].value
    if p >= LEVEL or math.isnan(value) or value == 0:
        return f"no difference beyond chance at the {LEVEL:.0%} level"
    return f"{'B' if value < 0 else 'A'} is better at the {LEVEL:.0%} level"


def _table(head: str, rows: dict[str, RateDifference]) -> list[str]:
    first = next(iter(rows.values()))
    units = [unit for unit in first.intervals if any(row.intervals[unit] for row in rows.values())]
    width = max(len(head), *(len(name) for name in rows))
    heads = "".join(f"  {f'95 % by {unit}':<18}{'B better':>10}" for unit in units)
    lines = [f"{head:<{width}}{'A':>9}{'B':>9}{'B - A':>9}{'relative':>10}{heads}"]
    for name, row in rows.items():
        relative = (
            f"{100 * row.value / row.first:+.1f} %"
            if row.first and math.isfinite(row.value)
            else "-"
        )
        bounds = "".join(
            f"  {_range(row.intervals[unit]):<18}{_percent(row.better[unit], 1) + ' %':>10}"
            for unit in units
        )
        difference = _percent(row.value, sign="+")
        cells = f"{_percent(row.first):>9}{_percent(row.second):>9}{difference:>9}{relative:>10}"
        lines.append(f"{name:<{width}}{cells}{bounds}".rstrip())
    return lines


def _tests(comparison: Comparison) -> list[str]:
    pairs = comparison.pairs
    better, worse, same = comparison.wins
    mean = f"mean difference {pairs.mean:+.3f} errors, z {pairs.z:.2f}, p {_p(pairs.p)}"
    return [
        f"matched pairs: {plural(pairs.segments, 'segment')}, {mean}: {verdict(comparison)}",
        f"utterances: B has fewer errors in {better}, more in {worse}, as many in {same} (sign "
        "test p "
        f"{_p(comparison.sign_test)})",
    ]


def _utterances(comparison: Comparison) -> list[str]:
    lines = []
    for head, better in (("fewer errors in B", True), ("more errors in B", False)):
        rows = [
            f"{name} {first} -> {second}"
            for name, first, second in comparison.changed(SHOWN, better)
        ]
        lines.append(f"  {head}: {', '.join(rows) or 'none'}")
    return lines


def _words(comparison: Comparison) -> list[str]:
    lines = ["reference words, times wrong in A -> in B of times spoken:"]
    for head, better in (("wrong less often", True), ("wrong more often", False)):
        rows = [
            f"{word} {first} -> {second} of {spoken}"
            for word, spoken, first, second in comparison.changed_words(SHOWN, better)
        ]
        lines.append(f"  {head}: {', '.join(rows) or 'none'}")
    ranked = sorted(
        comparison.inserted.items(), key=lambda item: (-abs(item[1][1] - item[1][0]), item[0])
    )[:SHOWN]
    lines.append(
        f"  inserted: {', '.join(f'{word} {a} -> {b}' for word, (a, b) in ranked) or 'no change'}"
    )
    return lines


def _percent(value: float, digits: int = 2, sign: str = "") -> str:
    return f"{100 * value:{sign}.{digits}f}" if math.isfinite(value) else "-"


def _range(bounds: Interval) -> str:
    return "-" if bounds is None else f"{100 * bounds[0]:+.2f} to {100 * bounds[1]:+.2f}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.1e}"
