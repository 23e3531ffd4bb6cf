"""The rows of a study, read back: error rates, contrasts with their intervals, and the table.

A contrast is the difference of two systems' word error rates on the pooled test sets, in points,
second less first. Its interval is a bootstrap over seeds and speakers together: a draw takes the
same speakers for both systems and all seeds, and pairs of trainings with the same seed. The
quantiles are widened for few units, as those of `asrtool score` are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from systems import System

from asrtool.score.bootstrap import tail

DRAWS, FEWEST = 4000, 10  # speakers: with fewer, utterances are drawn


class Contrast(NamedTuple):
    """Points of word error rate."""

    difference: float
    low: float
    high: float
    seeds: int
    units: str  # what was drawn beside seeds

    def verdict(self, claimed: float | None) -> str:
        """claimed: the paper's difference in points, below 0 for a gain; None: it gives none."""
        if self.high < 0:
            return "confirmed"
        if claimed is not None and self.low > claimed:
            return "denied"
        half = (self.high - self.low) / 2
        return f"undecided: an effect below {half:.1f} points would not have shown"


def read(folder: Path, system: str) -> dict[int, dict]:
    """Seed -> row."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob(f"{system}-s*.json"))]
    return {row["seed"]: row for row in found}


def counts(row: Mapping, decoding: str, sets: Sequence[str]) -> dict[str, np.ndarray]:
    """Utterance -> (2,): errors and words of the reference."""
    return {
        key: np.array([s + d + i, c + s + d])
        for name in sets
        for key, (c, s, d, i) in row["decodings"][decoding][name].items()
    }


def speaker(utterance: str) -> str:
    """Ids of LibriSpeech and speechocean762 begin with the speaker."""
    return utterance.partition("-")[0]


def table_of(
    seeds: Sequence[Mapping], decoding: str, sets: Sequence[str]
) -> tuple[np.ndarray, str]:
    """(seeds, units, 2) errors and words of each speaker, or of each utterance where speakers are
    too few; what the units are.
    """
    per_seed = [counts(row, decoding, sets) for row in seeds]
    names = sorted({speaker(key) for key in per_seed[0]})
    by, what = (speaker, "speakers") if len(names) >= FEWEST else (str, "utterances")
    units = {name: index for index, name in enumerate(sorted({by(key) for key in per_seed[0]}))}
    table = np.zeros((len(seeds), len(units), 2), dtype=np.int64)
    for seed, found in enumerate(per_seed):
        for key, pair in found.items():
            table[seed, units[by(key)]] += pair
    return table, what


def rate(table: np.ndarray) -> float:
    """Per cent, of (..., 2) errors and words."""
    errors, words = table.reshape(-1, 2).sum(0)
    return 100 * errors / words


def contrast(
    first: Mapping[int, Mapping],
    second: Mapping[int, Mapping],
    decodings: tuple[str, str],
    sets: Sequence[str],
    draws: int = DRAWS,
) -> Contrast:
    """Of the seeds that both systems have."""
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError("the two systems have no seed in common; run both with the same --seeds")
    left, units = table_of([first[seed] for seed in common], decodings[0], sets)
    right, _ = table_of([second[seed] for seed in common], decodings[1], sets)
    rng = np.random.default_rng(0)
    values = np.empty(draws)
    for draw in range(draws):
        seeds = rng.integers(len(common), size=len(common))
        rows = rng.integers(left.shape[1], size=left.shape[1])
        values[draw] = rate(right[seeds][:, rows]) - rate(left[seeds][:, rows])
    share = tail(len(common)) if len(common) > 1 else tail(left.shape[1])
    low, high = np.quantile(values, [share, 1 - share])
    return Contrast(rate(right) - rate(left), float(low), float(high), len(common), units)


def table(
    folder: Path,
    systems: Mapping[str, System],
    dev: Sequence[str],
    tests: Sequence[str],
    beside: Sequence[str],
) -> str:
    """Markdown: a line for each system and decoding that has rows."""
    lines = [
        "| system | decoding | seeds | dev | test, pooled | "
        + " | ".join(beside)
        + " | against | points | 95 % | CPU minutes |",
        "|" + " --- |" * (9 + len(beside)),
    ]
    measured = {name: read(folder, name) for name in systems}
    for name, system in systems.items():
        chosen = list(measured[name].values())
        for decoding in chosen[0]["decodings"] if chosen else ():
            cells = [system.title or name, decoding, str(len(chosen))]
            for sets in (dev, tests, *([one] for one in beside)):
                cells.append(f"{rate(table_of(chosen, decoding, sets)[0]):.2f}")
            cells += against(measured, systems, name, decoding, tests)
            minutes = np.mean([row["train_cpu_seconds"] / 60 for row in chosen])
            cells.append(f"{minutes:.0f}")
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def against(
    measured: Mapping[str, Mapping[int, Mapping]],
    systems: Mapping[str, System],
    name: str,
    decoding: str,
    tests: Sequence[str],
) -> list[str]:
    """Cells: the system that this one is compared with, the difference, its interval."""
    other = systems[name].against
    if other is None or decoding != systems[name].primary:
        return ["", "", ""]
    base, own = measured[other], measured[name]
    if not base.keys() & own.keys():
        return [other, "", ""]
    found = contrast(base, own, (systems[other].primary, decoding), tests)
    drawn = f"{found.low:+.2f} to {found.high:+.2f} ({found.units}, {found.seeds} seeds)"
    return [other, f"{found.difference:+.2f}", drawn]
