from __future__ import annotations

import numpy as np
import pytest

from asrtool.score.bootstrap import bootstrap_rates, interval


def counts(errors, reference) -> np.ndarray:
    errors, reference = np.asarray(errors), np.asarray(reference)
    return np.stack([reference - errors, errors, np.zeros_like(errors), np.zeros_like(errors)], axis=1)


def test_the_rates_are_distributed_like_those_of_drawn_utterances():
    rng = np.random.default_rng(3)
    reference = rng.integers(1, 20, 200)
    errors = rng.binomial(reference, 0.1)
    fast = bootstrap_rates(counts(errors, reference), draws=20000)
    rows = rng.integers(0, 200, (20000, 200))
    plain = errors[rows].sum(axis=1) / reference[rows].sum(axis=1)
    # 20,000 draws know a mean to 1/140 of the spread and the 2.5 % points to about 1/40 of it.
    assert fast.mean() == pytest.approx(plain.mean(), abs=0.05 * plain.std())
    assert interval(fast) == pytest.approx(interval(plain), abs=0.15 * plain.std())


def test_the_interval_covers_the_true_rate_about_95_times_in_100():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(600):
        reference = rng.integers(5, 15, 300)
        low, high = interval(bootstrap_rates(counts(rng.binomial(reference, 0.1), reference)))
        covered += low <= 0.1 <= high
    assert 0.93 <= covered / 600 <= 0.97         # 600 trials know 95 % to 0.9 % (one standard deviation)


def test_the_same_seed_gives_the_same_interval():
    table = counts([0, 1, 2, 3], [5, 5, 5, 5])
    assert interval(bootstrap_rates(table, seed=4)) == interval(bootstrap_rates(table, seed=4))
    assert not np.array_equal(bootstrap_rates(table, seed=4), bootstrap_rates(table, seed=5))


def test_equal_utterances_leave_no_doubt():
    assert interval(bootstrap_rates(counts([1] * 9, [4] * 9))) == (0.25, 0.25)


def test_without_a_reference_token_there_is_no_interval():
    assert interval(bootstrap_rates(np.array([[0, 0, 0, 3]]))) is None
    assert interval(bootstrap_rates(np.empty((0, 4), dtype=np.int64))) is None
