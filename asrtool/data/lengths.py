"""The lengths of a model's training utterances: those that it can be expected to recognise well.

`lengths.json`, in the folder of each phase and in a packed model:

    {"utterances": 5200, "hours": 3.94, "seconds": {"0": 0.98, "0.01": 1.56, ..., "0.99": 4.51, "1":
        5.29}}

`seconds` are quantiles: 99 % of the utterances are no longer than 4.51 seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from asrtool.errors import UserError
from asrtool.system import atomic

NAME = "lengths.json"
QUANTILES = (0.0, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 1.0)


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Quantiles of the seconds of a set's utterances."""

    utterances: int
    hours: float
    seconds: dict[str, float]

    @classmethod
    def of(cls, durations: Sequence[float]) -> Lengths:
        """durations: seconds of each utterance, at least one."""
        values = np.asarray(durations, dtype=np.float64)
        quantiles = np.quantile(values, QUANTILES).round(3).tolist()
        seconds = {f"{share:g}": value for share, value in zip(QUANTILES, quantiles, strict=True)}
        return cls(
            utterances=len(values), hours=round(float(values.sum()) / 3600, 3), seconds=seconds
        )

    def quantile(self, share: float) -> float:
        """The length in seconds that a share (in QUANTILES) of utterances does not exceed."""
        return self.seconds[f"{share:g}"]

    def save(self, folder: Path) -> None:
        atomic.write_text(folder / NAME, json.dumps(asdict(self)) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Lengths | None:
        """The lengths in a folder; None if it has none. Raises `UserError` if unreadable."""
        path = folder / NAME
        if not path.exists():
            return None
        try:
            lengths = cls(**json.loads(path.read_text(encoding="utf-8")))
            for share in QUANTILES:
                float(lengths.quantile(share))
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{path}: expected a JSON object with utterances, hours and quantiles of "
                "seconds; remove it, and stage 3 writes it again"
            ) from None
        return lengths
