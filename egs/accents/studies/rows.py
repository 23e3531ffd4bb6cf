"""The rows of a study, read back: error rates, contrasts with their intervals, and the table.

A contrast is the difference of two systems' word error rates on the test sets, in points, second
less first: pooled, or the mean over the accents where the study asks for it. Its interval is a
bootstrap over seeds and speakers together: a draw takes the same speakers for both systems and all
seeds, and pairs of trainings with the same seed. Within an accent speakers are drawn among those of
the accent. The quantiles are widened for few units, as those of `asrtool score` are.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from systems import NOISES, Study, System

from asrtool.score.bootstrap import tail

DRAWS = 4000
FEWEST = 10  # speakers: with fewer, utterances are drawn
FEWEST_CLIPS = 20  # of an accent: with fewer, it has no number


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


class Errors(NamedTuple):
    """Errors and words by unit, a speaker or an utterance."""

    table: np.ndarray  # (seeds, units, 2)
    strata: np.ndarray  # (units,) index of the accent; 0 where rates are pooled
    units: str  # "speakers", "utterances" or both

    def rates(self, seeds: np.ndarray, units: np.ndarray) -> float:
        """Word error rate in per cent, the mean over strata, of some seeds and units."""
        chosen, strata = self.table[seeds][:, units].sum(0), self.strata[units]
        sums = np.stack([np.bincount(strata, chosen[:, k]) for k in range(2)])
        return float(100 * (sums[0] / sums[1]).mean())

    @property
    def rate(self) -> float:
        return self.rates(np.arange(len(self.table)), np.arange(len(self.strata)))

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """As many units of each stratum as it has, with replacement."""
        return np.concatenate(
            [
                rng.choice(own, size=len(own))
                for own in (np.flatnonzero(self.strata == k) for k in np.unique(self.strata))
            ]
        )


def errors_of(
    seeds: Sequence[Mapping], decoding: str, sets: Sequence[str], macro: bool = False
) -> Errors:
    """Of some trainings of a system.

    Units are speakers; utterances in an accent, or in all sets if pooled, that has too few of them.
    """
    per_seed = [counts(row, decoding, sets) for row in seeds]
    labels = seeds[0]["labels"] if macro else {}
    accent = {key: labels.get(key, "") for key in per_seed[0]}
    clips = Counter(accent.values())
    strata, units, kinds = [], {}, []
    names = [name for name in sorted(clips) if not macro or clips[name] >= FEWEST_CLIPS]
    for stratum, name in enumerate(names):
        own = sorted(key for key in accent if accent[key] == name)
        enough = len({speaker(key) for key in own}) >= FEWEST
        kinds.append("speakers" if enough else "utterances")
        numbers: dict[str, int] = {}
        for key in own:
            unit = speaker(key) if enough else key
            units[key] = numbers.setdefault(unit, len(strata) + len(numbers))
        strata += [stratum] * len(numbers)
    table = np.zeros((len(seeds), len(strata), 2), dtype=np.int64)
    for seed, errors in enumerate(per_seed):
        for key, unit in units.items():
            table[seed, unit] += errors[key]
    return Errors(table, np.array(strata), " and ".join(dict.fromkeys(kinds)))


def contrast(
    first: Mapping[int, Mapping],
    second: Mapping[int, Mapping],
    decodings: tuple[str, str],
    sets: Sequence[str],
    macro: bool = False,
    draws: int = DRAWS,
) -> Contrast:
    """Of the seeds that both systems have."""
    common = sorted(first.keys() & second.keys())
    if not common:
        raise ValueError("the two systems have no seed in common; run both with the same --seeds")
    left = errors_of([first[seed] for seed in common], decodings[0], sets, macro)
    right = errors_of([second[seed] for seed in common], decodings[1], sets, macro)
    rng = np.random.default_rng(0)
    values = np.empty(draws)
    for draw in range(draws):
        seeds, units = rng.integers(len(common), size=len(common)), left.draw(rng)
        values[draw] = right.rates(seeds, units) - left.rates(seeds, units)
    share = tail(len(common)) if len(common) > 1 else tail(len(left.strata))
    low, high = np.quantile(values, [share, 1 - share])
    return Contrast(right.rate - left.rate, float(low), float(high), len(common), left.units)


def table(folder: Path, study: Study) -> str:
    """Markdown: a line for each system and decoding that has rows; below, each accent, the degraded
    copies of a test set, or thirds of the test sets by speaking rate and by length.
    """
    measured = {name: read(folder, name) for name in study.systems}
    tables = [main_table(measured, study)]
    if study.macro:
        tables.append(accent_table(measured, study))
    if study.degraded is not None:
        tables.append(degraded_table(measured, study))
    if study.speeds:
        tables.append(speed_table(measured, study))
    return "\n\n".join(tables)


def trained(
    measured: Mapping[str, Mapping[int, Mapping]], study: Study
) -> Iterator[tuple[str, System, list[Mapping]]]:
    """Name, description and rows of each system that has any."""
    for name, system in study.systems.items():
        if rows := list(measured[name].values()):
            yield name, system, rows


def main_table(measured: Mapping[str, Mapping[int, Mapping]], study: Study) -> str:
    label = "test, mean over accents" if study.macro else "test, pooled"
    heads = ["system", "decoding", "seeds", "dev", label, *study.beside]
    heads += ["words a minute of noise", "rows a second", "decoding, CPU seconds"] * study.noise
    heads += ["against", "points", "95 %", "CPU minutes"]
    lines = []
    for name, system, chosen in trained(measured, study):
        for decoding in chosen[0]["decodings"]:
            cells = [system.title or name, decoding, str(len(chosen))]
            decoded = chosen[0]["decodings"][decoding]
            for sets in (study.dev, study.tests, *([one] for one in study.beside)):
                macro = study.macro and sets is study.tests
                known = all(one in decoded for one in sets)
                cells.append(
                    f"{errors_of(chosen, decoding, sets, macro).rate:.2f}" if known else ""
                )
            if study.noise:
                cells += load(chosen, decoding)
            cells += against(measured, study, name, decoding)
            # a training that went on after a stop has the time of its last part
            seconds = [row["train_cpu_seconds"] for row in chosen if not row["resumed"]]
            cells.append(f"{np.mean(seconds) / 60:.0f}" if seconds else "")
            lines.append(cells)
    return markdown(heads, lines)


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    first, *others = (f"| {' | '.join(cells)} |" for cells in (heads, *lines))
    return "\n".join([first, "|" + " --- |" * len(heads), *others])


def accent_table(measured: Mapping[str, Mapping[int, Mapping]], study: Study) -> str:
    """Markdown: word error rate of each accent that has enough clips."""
    heads, lines = ["system"], []
    for name, system, chosen in trained(measured, study):
        sums: dict[str, np.ndarray] = {}
        clips: Counter[str] = Counter()
        for row in chosen:
            for key, errors in counts(row, system.primary, study.tests).items():
                accent = row["labels"].get(key, "")
                sums[accent] = sums.get(accent, 0) + errors
                clips[accent] += 1
        accents = [one for one in sorted(sums) if clips[one] >= FEWEST_CLIPS * len(chosen)]
        if not lines:
            heads += [f"{one}, {clips[one] // len(chosen)} clips" for one in accents]
        rates = (f"{100 * sums[one][0] / sums[one][1]:.2f}" for one in accents)
        lines.append([system.title or name, *rates])
    return markdown(heads, lines)


def degraded_table(measured: Mapping[str, Mapping[int, Mapping]], study: Study) -> str:
    """Markdown: word error rate and searched frames for each letter of the reference, of a test set
    as it is, with noise, and in a room.
    """
    sets = (study.degraded, *study.conditions)
    names = ("clean", *(name.removeprefix(f"{study.degraded}_") for name in study.conditions))
    heads = [
        "system",
        *(f"{name}: WER" for name in names),
        *(f"{name}: frames a letter" for name in names),
    ]
    lines = []
    for name, system, chosen in trained(measured, study):
        rates = [errors_of(chosen, system.primary, [one]).rate for one in sets]
        frames = [
            sum(row["measured"][system.primary]["sets"][one]["frames"] for row in chosen)
            / sum(row["letters"][one] for row in chosen)
            for one in sets
        ]
        lines.append([system.title or name, *(f"{value:.2f}" for value in (*rates, *frames))])
    return markdown(heads, lines)


def speed_table(measured: Mapping[str, Mapping[int, Mapping]], study: Study) -> str:
    """Markdown: word error rate of the slowest to the fastest third of the test utterances, in
    words a second of the reference, and of the shortest to the longest; CPU seconds of the
    decoding of all sets, with its start.
    """
    heads, lines = ["system"], []
    for name, system, chosen in trained(measured, study):
        seconds = chosen[0]["durations"]
        per_seed = [counts(row, system.primary, study.tests) for row in chosen]
        words = {key: errors[1] for key, errors in per_seed[0].items()}
        orders = {
            "words a second": {key: words[key] / seconds[key] for key in words},
            "seconds": seconds,
        }
        cells = [system.title or name]
        for unit, values in orders.items():
            for third in np.array_split(sorted(words, key=lambda key: (values[key], key)), 3):
                wrong, all_words = sum(errors[key] for errors in per_seed for key in third)
                cells.append(f"{100 * wrong / all_words:.2f}")
                if not lines:
                    heads.append(f"{values[third[0]]:.1f} to {values[third[-1]]:.1f} {unit}")
        cpu = np.mean([row["measured"][system.primary]["cpu_seconds"] for row in chosen])
        lines.append([*cells, f"{cpu:.0f}"])
    return markdown([*heads, "decoding, CPU seconds"], lines)


def load(seeds: Sequence[Mapping], decoding: str) -> list[str]:
    """Cells: words written on a minute of noise, frames that were searched in a second of speech
    (of a speech LLM: rows of speech in its prompt), and CPU seconds of the decoding.
    """
    sets = [row["measured"][decoding]["sets"] for row in seeds]
    words = sum(
        insertions
        for row in seeds
        for *_, insertions in row["decodings"][decoding][NOISES[1]].values()
    )
    minutes = sum(one[NOISES[1]]["seconds"] for one in sets) / 60
    speech = [one[name] for one in sets for name in one if name not in NOISES]
    rows = sum(one["frames"] for one in speech) / sum(one["seconds"] for one in speech)
    cpu = np.mean([row["measured"][decoding]["cpu_seconds"] for row in seeds])
    return [f"{words / minutes:.1f}", f"{rows:.1f}", f"{cpu:.0f}"]


def against(
    measured: Mapping[str, Mapping[int, Mapping]], study: Study, name: str, decoding: str
) -> list[str]:
    """Cells: the system that this one is compared with, the difference, its interval."""
    system: System = study.systems[name]
    other = system.against
    if other is None or decoding != system.primary:
        return ["", "", ""]
    base, own = measured[other], measured[name]
    if not base.keys() & own.keys():
        return [other, "", ""]
    decodings = (study.systems[other].primary, decoding)
    found = contrast(base, own, decodings, study.tests, study.macro)
    seeds = f"{found.seeds} seed" + "s" * (found.seeds > 1)
    drawn = f"{found.low:+.2f} to {found.high:+.2f} ({found.units}, {seeds})"
    return [other, f"{found.difference:+.2f}", drawn]
