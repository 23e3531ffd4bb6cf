from __future__ import annotations

import numpy as np
import pytest

from asrtool.score.bootstrap import bootstrap_rates, interval, intervals, mean_interval, tail


def counts(errors, reference) -> np.ndarray:
    errors, reference = np.asarray(errors), np.asarray(reference)
    return np.stack(
        [reference - errors, errors, np.zeros_like(errors), np.zeros_like(errors)], axis=1
    )


def test_the_rates_are_distributed_like_those_of_drawn_utterances():
    rng = np.random.default_rng(3)
    reference = rng.integers(1, 20, 200)
    errors = rng.binomial(reference, 0.1)
    fast = bootstrap_rates(counts(errors, reference), draws=20000)
    rows = rng.integers(0, 200, (20000, 200))
    plain = errors[rows].sum(axis=1) / reference[rows].sum(axis=1)
    # 20,000 draws know a mean to 1/140 of the spread and the 2.5 % points to about 1/40 of it.
    assert fast.mean() == pytest.approx(plain.mean(), abs=0.05 * plain.std())
    assert interval(fast, 200) == pytest.approx(interval(plain, 200), abs=0.15 * plain.std())


def test_the_interval_of_a_mean_over_seeds_is_students():
    half = 4.303 * 0.1 / 3**0.5  # the tables' quantiles of two degrees of freedom and of one
    assert mean_interval([0.7, 0.8, 0.9]) == pytest.approx((0.8 - half, 0.8 + half), abs=1e-4)
    assert mean_interval([1.0, 2.0]) == pytest.approx(
        (1.5 - 12.706 / 2, 1.5 + 12.706 / 2), abs=2e-3
    )
    assert mean_interval([1.0]) is None


def covered(
    trials: int, utterances: int, rate: float, speakers: int = 0, spread: float = 0.0, seed: int = 5
) -> float:
    """Share of simulated sets whose interval holds the true rate; speakers' own rates vary by a
    beta distribution.
    """
    rng = np.random.default_rng(seed)
    hits = 0
    for _ in range(trials):
        reference = rng.integers(5, 15, utterances)
        units = np.arange(utterances) % speakers if speakers else None
        rates = rng.beta(rate / spread, (1 - rate) / spread, speakers)[units] if speakers else rate
        low, high = intervals(counts(rng.binomial(reference, rates), reference), units)["rate"]
        hits += low <= rate <= high
    return hits / trials


def test_the_interval_covers_the_true_rate_about_95_times_in_100():
    # 400 trials know 95 % to 1.1 % (one sigma)
    assert 0.93 <= covered(400, utterances=300, rate=0.1) <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        {"utterances": 100, "rate": 0.1},
        {"utterances": 300, "rate": 0.05},
        {"utterances": 1000, "rate": 0.02},
        {"utterances": 3000, "rate": 0.3},
        {"utterances": 1000, "rate": 0.1, "speakers": 20, "spread": 0.02},
        {"utterances": 1000, "rate": 0.1, "speakers": 40, "spread": 0.02},
        {"utterances": 2000, "rate": 0.2, "speakers": 100, "spread": 0.05},
    ],
    ids=str,
)
def test_coverage_stays_between_93_and_97_percent(case):
    assert 0.93 <= covered(3000, **case) <= 0.97  # 3000 trials know it to 0.4 %


def test_utterances_of_few_speakers_promise_too_much_and_speakers_do_not():
    """Why there are intervals by speaker: with speakers that differ, those by utterance are far too
    narrow.
    """
    rng = np.random.default_rng(8)
    hits = {"utterance": 0, "speaker": 0}
    for _ in range(100):
        reference = rng.integers(5, 15, 600)
        units = np.arange(600) % 20
        table = counts(rng.binomial(reference, rng.beta(2, 18, 20)[units]), reference)
        for unit, drawn in (("utterance", None), ("speaker", units)):
            low, high = intervals(table, drawn)["rate"]
            hits[unit] += low <= 0.1 <= high
    assert hits["utterance"] < 65
    assert hits["speaker"] > 88


def test_speakers_are_drawn_with_all_that_they_say():
    rng = np.random.default_rng(3)
    reference = rng.integers(1, 20, 120)
    errors = rng.binomial(reference, 0.2)
    units = rng.integers(0, 30, 120)
    sums = np.array(
        [[errors[units == unit].sum(), reference[units == unit].sum()] for unit in range(30)]
    )
    drawn = sums[rng.integers(0, 30, (20000, 30))].sum(axis=1)
    plain = drawn[:, 0] / drawn[:, 1]
    found = intervals(counts(errors, reference), units)["rate"]
    assert found == pytest.approx(interval(plain, 30), abs=0.25 * plain.std())


def test_tails_are_those_of_hesterbergs_table():
    """Expanded percentile: Phi(-sqrt(n / (n - 1)) t) for t of n - 1 degrees of freedom, from
    printed tables of t.
    """
    assert tail(2) == pytest.approx(0.0, abs=1e-9)
    assert tail(10) == pytest.approx(0.00857, abs=1e-4)  # t = 2.2622
    assert tail(31) == pytest.approx(0.01894, abs=1e-4)  # t = 2.0423
    assert tail(1_000_000) == pytest.approx(0.025, abs=1e-4)


def test_the_same_seed_gives_the_same_interval():
    table = counts([0, 1, 2, 3] * 3, [5] * 12)
    assert intervals(table, seed=4) == intervals(table, seed=4)
    assert not np.array_equal(bootstrap_rates(table, seed=4), bootstrap_rates(table, seed=5))


def test_equal_utterances_leave_no_doubt():
    assert intervals(counts([1] * 9, [4] * 9))["rate"] == (0.25, 0.25)


def test_every_number_has_an_interval_around_it():
    rng = np.random.default_rng(2)
    table = np.stack(
        [rng.integers(low, high, 50) for low, high in ((3, 9), (0, 3), (0, 2), (0, 2))], axis=1
    )
    names = ("correct", "substitutions", "deletions", "insertions")
    expected = dict(zip(names, table.sum(axis=0) / table[:, :3].sum(), strict=True))
    expected["rate"] = table[:, 1:].sum() / table[:, :3].sum()
    expected["utterances_with_errors"] = table[:, 1:].any(axis=1).mean()
    found = intervals(table)
    assert found.keys() == expected.keys()
    assert all(found[name][0] < value < found[name][1] for name, value in expected.items())


def test_few_units_and_no_reference_token_give_no_interval():
    table = counts([1, 2] * 20, [4] * 40)
    assert intervals(table[:8])["rate"] is not None
    assert intervals(table[:7])["rate"] is None
    assert intervals(table, np.arange(40) % 7)["rate"] is None
    assert intervals(np.array([[0, 0, 0, 3]] * 9))["rate"] is None
    assert intervals(np.empty((0, 4), dtype=np.int64))["rate"] is None
