"""Bootstrap: how much a number would vary with other samples of utterances, or of speakers, from
the same source.

Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP
2004: draw as many units as there are, with replacement, and compute the number from the sums. Units
are utterances, or speakers with all of their utterances, because those resemble each other. Units
with equal sums are interchangeable, so a draw is one multinomial over the distinct rows: the same
distribution, much faster.

Percentile intervals of few units are too narrow. They are widened as in Hesterberg, "What Teachers
Should Know About the Bootstrap", The American Statistician 69(4), 2015, section 4.3 (expanded
percentile): with n units the tails are Phi(-sqrt(n / (n - 1)) * t(0.975, n - 1)) instead of 2.5 %.
With a thousand units it makes no difference. For fewer than 8 units, whose draws hardly differ,
there is no interval: it would contain the true value in less than 93 of 100 cases
(tools/benchmarks/score_coverage.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist

import numpy as np

DRAWS = 1000
SEED = 0
CONFIDENCE = 0.95
FEWEST = 8  # units that an interval needs
CELLS = 2_000_000  # cells of the table that is drawn at once, a bound on memory

Interval = tuple[float, float] | None
Intervals = Mapping[str, Mapping[str, Interval]]  # unit -> number -> interval
NUMBERS = ("rate", "correct", "substitutions", "deletions", "insertions", "utterances_with_errors")


def draw_sums(table: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """(draws, columns) float64: the column sums of `draws` samples of the rows of `table` (units,
    columns) integers.
    """
    kinds, weights = _distinct(table)
    rng = np.random.default_rng(seed)
    rows = max(1, CELLS // len(kinds))
    numbers = kinds.astype(np.float64)  # exact below 2^53, and a fast product
    return np.concatenate(
        [
            rng.multinomial(len(table), weights / len(table), size=min(rows, draws - start)).astype(
                np.float64
            )
            @ numbers
            for start in range(0, draws, rows)
        ]
    )


def utterance_table(counts: np.ndarray) -> np.ndarray:
    """(utterances, 6) from (utterances, 4) counts: C, S, D, I, whether there is an error, 1."""
    wrong = counts[:, 1:].any(axis=1)
    return np.concatenate([counts, wrong[:, None], np.ones((len(counts), 1), np.int64)], axis=1)


def sums_by(table: np.ndarray, units: np.ndarray) -> np.ndarray:
    """(units, columns): rows of `table` with the same number (0 to n - 1) in `units` added up."""
    return (
        np.stack([np.bincount(units, column) for column in table.T], axis=1)
        .round()
        .astype(np.int64)
    )


def numbers(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> (draws,) from (draws, 6) sums of an utterance table; NaN for a division by 0."""
    correct, substitutions, deletions, insertions, wrong, utterances = sums.T
    reference = correct + substitutions + deletions
    parts = (substitutions + deletions + insertions, correct, substitutions, deletions, insertions)
    values = {name: ratio(part, reference) for name, part in zip(NUMBERS, parts, strict=False)}
    return {**values, NUMBERS[-1]: ratio(wrong, utterances)}


def intervals(
    counts: np.ndarray, units: np.ndarray | None = None, seed: int = SEED
) -> dict[str, Interval]:
    """Number -> interval of (utterances, 4) counts; `units`: each utterance's speaker, 0 to n - 1,
    to draw those.
    """
    table = utterance_table(counts)
    if units is not None:
        table = sums_by(table, units)
    if len(table) == 0:
        return dict.fromkeys(NUMBERS)
    return {
        name: interval(values, len(table))
        for name, values in numbers(draw_sums(table, seed=seed)).items()
    }


def bootstrap_rates(counts: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """Draw (draws,) error rates of (utterances, 4) counts; NaN without a reference token."""
    if len(counts) == 0:
        return np.full(draws, np.nan)
    sums = draw_sums(
        np.stack([counts[:, 1:].sum(axis=1), counts[:, :3].sum(axis=1)], axis=1), draws, seed
    )
    return ratio(sums[:, 0], sums[:, 1])


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def interval(values: np.ndarray, units: int) -> Interval:
    """The 95 % interval of drawn values over `units` units; None for too few units, or if no draw
    has a value.
    """
    values = values[~np.isnan(values)]
    if len(values) == 0 or units < FEWEST:
        return None
    share = tail(units)
    low, high = np.quantile(values, [share, 1 - share]).tolist()
    return low, high


def mean_interval(values: Sequence[float]) -> Interval:
    """The 95 % interval of the mean of independent values (Student's t), None for a single one."""
    if len(values) < 2:
        return None
    half = (
        _student((1 + CONFIDENCE) / 2, len(values) - 1)
        * float(np.std(values, ddof=1))
        / len(values) ** 0.5
    )
    return float(np.mean(values)) - half, float(np.mean(values)) + half


@functools.cache
def tail(units: int) -> float:
    """The share of draws to cut off at either end."""
    freedom = units - 1
    return NormalDist().cdf(-math.sqrt(units / freedom) * _student((1 + CONFIDENCE) / 2, freedom))


def _student(share: float, freedom: int) -> float:
    """The quantile of Student's t distribution at `share`, which is above 0.5."""
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    # With t = sqrt(freedom) tan(angle), P(0 < T < t) is the integral of
    # scale * cos(angle) ** (freedom - 1), here by the trapezoidal rule up to t = 50. That is far
    # enough: the quantile of 2 units is 12.7.
    angles = np.linspace(0, math.atan(50 / math.sqrt(freedom)), 20001)
    density = scale * np.cos(angles) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(angles))])
    return math.sqrt(freedom) * math.tan(float(np.interp(share - 0.5, mass, angles)))


def _distinct(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows and their counts."""
    bases = [int(column.max()) + 1 for column in table.T]
    if math.prod(bases) >= 2**62:
        return np.unique(table, axis=0, return_counts=True)
    # one integer per row sorts much faster than rows; only if that overflows, rows are sorted
    keys = np.ravel_multi_index(tuple(table.T), bases)
    _, first, weights = np.unique(keys, return_index=True, return_counts=True)
    return table[first], weights
