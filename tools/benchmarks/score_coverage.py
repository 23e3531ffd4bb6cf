"""The coverage of scoring's 95 % intervals: how often they contain the true rate of simulated sets.

    PYTHONPATH=. python tools/benchmarks/score_coverage.py --trials 2000

Each row is a kind of set. References have 5 to 14 words; each word is wrong with the error rate of
its speaker. The rates of the speakers are drawn from a beta distribution with the true rate as its
mean, wide enough that the choice of speakers matters.
"""

from __future__ import annotations

import argparse

import numpy as np

from asrtool.score.bootstrap import intervals

# utterances, speakers (0: utterances are independent), true rate
CASES = [
    (10, 0, 0.1),
    (20, 0, 0.1),
    (50, 0, 0.1),
    (100, 0, 0.1),
    (300, 0, 0.1),
    (1000, 0, 0.02),
    (1000, 0, 0.3),
    (5000, 0, 0.05),
    (400, 8, 0.1),
    (500, 10, 0.1),
    (1000, 20, 0.1),
    (1000, 40, 0.1),
    (2000, 100, 0.2),
]
SPREAD = 0.02  # beta(rate / spread, (1 - rate) / spread)


def coverage(
    trials: int, utterances: int, speakers: int, rate: float, seed: int = 0
) -> tuple[float, float, float]:
    """Shares of trials whose interval contains the rate, is below it, is above it."""
    rng = np.random.default_rng(seed)
    below = above = 0
    for _ in range(trials):
        reference = rng.integers(5, 15, utterances)
        units = np.arange(utterances) % speakers if speakers else None
        rates = rng.beta(rate / SPREAD, (1 - rate) / SPREAD, speakers)[units] if speakers else rate
        errors = rng.binomial(reference, rates)
        nothing = np.zeros_like(errors)
        counts = np.stack([reference - errors, errors, nothing, nothing], axis=1)
        interval = intervals(counts, units)["rate"]
        below += interval is not None and interval[1] < rate
        above += interval is not None and interval[0] > rate
    return 1 - (below + above) / trials, below / trials, above / trials


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=2000)
    options = parser.parse_args()
    print("utterances  speakers  rate   covered   too low  too high   (percent of trials)")
    for utterances, speakers, rate in CASES:
        covered, below, above = (
            100 * share for share in coverage(options.trials, utterances, speakers, rate)
        )
        name = f"{utterances:>10}  {speakers or '-':>8}  {rate:>4}"
        print(f"{name}  {covered:>8.1f}  {below:>8.1f}  {above:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
