"""Bootstrap over utterances: how far an error rate would move with another sample of utterances from the same source.

Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", ICASSP 2004: draw as many
utterances as there are, with replacement, and take the rate of the sums. Utterances with equal (errors, reference
tokens) cannot be told apart, so a draw is one multinomial over the distinct pairs: the same distribution, much faster.
"""

from __future__ import annotations

import numpy as np

DRAWS = 1000
SEED = 0
CONFIDENCE = 0.95


def bootstrap_rates(counts: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> np.ndarray:
    """(draws,) rates from (utterances, 4) counts; NaN for a draw without a single reference token."""
    if len(counts) == 0:
        return np.full(draws, np.nan)
    errors, reference = counts[:, 1:].sum(axis=1), counts[:, :3].sum(axis=1)
    base = int(reference.max()) + 1
    kinds, weights = np.unique(errors * base + reference, return_counts=True)
    kinds = np.stack([kinds // base, kinds % base], axis=1)
    rng = np.random.default_rng(seed)
    rows = max(1, 2_000_000 // len(kinds))                       # bounds the memory of the drawn table
    sums = np.concatenate([
        rng.multinomial(len(counts), weights / len(counts), size=min(rows, draws - start)) @ kinds
        for start in range(0, draws, rows)
    ])
    return np.divide(sums[:, 0], sums[:, 1], out=np.full(draws, np.nan), where=sums[:, 1] > 0)


def interval(rates: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of the drawn rates; None where no draw had a rate."""
    rates = rates[~np.isnan(rates)]
    if len(rates) == 0:
        return None
    low, high = np.quantile(rates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]).tolist()
    return low, high
