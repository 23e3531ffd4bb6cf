"""Several training sets, each read as often as its weight says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from asrtool.data.config import BatchConfig, DataConfig
from asrtool.data.kaldi import datadir
from asrtool.data.kaldi.utterances import Utterances
from asrtool.data.loader import Dataset
from asrtool.data.sampler import BatchPlan
from asrtool.errors import UserError
from asrtool.log import logger

PART = "training_set"  # label of an utterance: the name of its set


def read(folder: Path, config: DataConfig) -> Utterances:
    """The utterances of the training set in `folder`, or of all sets that the config names.

    With several, the label PART of an utterance names its set. Raises `UserError` if the training
    set is not among them, or two sets share an id.
    """
    parts = [part.set for part in config.sets]
    if not parts:
        return datadir.read(folder)
    if folder.name not in parts:
        raise UserError(
            f"data.sets: {', '.join(parts)}: the training set {folder.name} is not among them; it "
            "gives the vocabulary and the mean and variance"
        )
    sets: dict[str, Utterances] = {}
    for name in parts:
        rows = datadir.read(folder.parent / name)
        for other, known in sets.items():
            if (shared := rows.shared_id(known)) is not None:
                raise UserError(
                    f"data.sets: utterance {shared} is in {other} and in {name}; give the ids of "
                    "one set a prefix (utils/copy_data_dir.sh)"
                )
        sets[name] = rows
    return Utterances.joined(rows.with_label(PART, name) for name, rows in sets.items())


def plan(training: Dataset) -> MixedPlan | None:
    """The plan of several training sets; None for one set."""
    config = training.config
    if not config.sets:
        return None
    names = [part.set for part in config.sets]
    groups = training.utterances.label(PART, names)
    hours = {}
    for number, name in enumerate(names):
        # one after the other: the order of a sum decides its last digit, and so perhaps the plan
        hours[name] = float(
            np.cumsum(training.utterances.durations[groups == number] / 3600)[-1:].sum()
        )
    if empty := [name for name, value in hours.items() if not value]:
        raise UserError(f"data.sets: no utterance of {empty[0]} can be used for training")
    shares = shares_of(hours, {part.set: part.weight for part in config.sets}, config.temperature)
    for name, share in shares.items():
        logger.info(
            "an epoch reads %.1f %% of the %.2f hours of %s", 100 * share, hours[name], name
        )
    # stretches without speech are in no set: an epoch reads as large a share of them as of the rest
    shares = [*shares.values()]
    parts = np.array(shares)[groups[groups >= 0]].tolist()
    shares.append(sum(parts) / len(parts))
    groups[groups < 0] = len(names)
    return MixedPlan(training.lengths, training.limits, training.seed, groups, shares)


class MixedPlan(BatchPlan):
    """Of several sets, each with the share of its utterances that an epoch reads, above 0 and at
    most 1.

    sets: (N,) the index of each utterance's set; shares: of each set. With a share s an utterance
    is read in epoch e if a multiple of 1 lies between e s + p and (e + 1) s + p. Its phase p is a
    random rank in its set, divided by the set's size. So every epoch has its share of a set to one
    utterance, and all utterances of a set are read equally often. It depends on seed and epoch
    alone, as the plan of one set does.
    """

    def __init__(
        self,
        lengths: Sequence[float],
        config: BatchConfig,
        seed: int,
        sets: Sequence[int],
        shares: Sequence[float],
    ) -> None:
        super().__init__(lengths, config, seed)
        sets = np.asarray(sets)
        rng = np.random.Generator(np.random.PCG64([seed, len(sets)]))
        self._shares = np.asarray(shares, dtype=np.float64)[sets]
        self._phases = np.empty(len(sets))
        for index in np.unique(sets):
            (own,) = np.nonzero(sets == index)
            self._phases[own] = (rng.permutation(len(own)) + 0.5) / len(own)

    def members(self, number: int) -> np.ndarray:
        before, after = (
            np.floor(epoch * self._shares + self._phases) for epoch in (number, number + 1)
        )
        return np.flatnonzero(after > before)

    def num_batches(self, number: int) -> int:
        """Number of batches in an epoch; it varies a little between epochs."""
        return len(self._starts(np.sort(self.padded[self.members(number)])))


def shares_of(
    hours: Mapping[str, float], weights: Mapping[str, float], temperature: float
) -> dict[str, float]:
    """The share of each set that an epoch reads: weight * hours ** (1 / temperature - 1), times a
    constant that makes the largest share 1.
    """
    raw = {name: weights[name] * hours[name] ** (1 / temperature - 1) for name in hours}
    return {name: value / max(raw.values()) for name, value in raw.items()}
