"""Training curves from `log.jsonl` over steps, with consecutive phases on one axis."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asrtool.errors import UserError

# numbers of a step's record that are not losses
NO_LOSS = {
    "time",
    "epoch",
    "step",
    "rate",
    "norm",
    "audio_seconds_per_second",
    "data_wait",
    "gpu_gb",
}


SHORTEST = 1e-12  # seconds: a divisor for a step whose measured times are all 0


@dataclass
class Curve:
    """Values over steps."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        self.steps.append(step)
        self.values.append(value)


@dataclass
class Curves:
    """The curves of an experiment.

    losses: of training, and `valid/...`; rates: error rates as fractions; time: part -> share;
    phases: name -> its first step on the axis.
    """

    losses: dict[str, Curve] = field(default_factory=dict)
    rates: dict[str, Curve] = field(default_factory=dict)
    learning_rate: Curve = field(default_factory=Curve)
    norm: Curve = field(default_factory=Curve)
    speed: Curve = field(default_factory=Curve)
    time: dict[str, Curve] = field(default_factory=dict)
    phases: dict[str, int] = field(default_factory=dict)


def read(exp: Path) -> Curves:
    """The curves of an experiment. Raises `UserError` without any record.

    If a run was interrupted after its last checkpoint, the resumed run's records of the same steps
    replace the earlier ones.
    """
    log = exp / "log.jsonl"
    if not log.exists():
        raise UserError(f"{exp} has no log.jsonl; training (stage 3) writes it")
    curves, offset, last = Curves(), 0, 0
    for phase, records in _by_phase(log).items():
        offset = last
        curves.phases[phase] = offset
        for (event, step), record in sorted(records.items(), key=lambda item: item[0][1]):
            last = max(last, offset + step)
            (_add_step if event == "step" else _add_validation)(curves, offset + step, record)
    if not last:
        raise UserError(
            f"{log} has no record of a step or a validation yet; records are written every "
            "trainer.log_every steps"
        )
    return curves


def _by_phase(log: Path) -> dict[str, dict[tuple[str, int], Mapping]]:
    """Phase -> (event, step) -> its last record."""
    phases: dict[str, dict[tuple[str, int], Mapping]] = {}
    for record in _records(log):
        if record.get("event") in ("step", "valid"):
            phases.setdefault(record["phase"], {})[record["event"], record["step"]] = record
    return phases


def _records(log: Path) -> Iterator[Mapping]:
    for line in log.read_text(encoding="utf-8").split("\n"):
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            # a line that a killed run left incomplete
            continue


def _add_step(curves: Curves, step: int, record: Mapping) -> None:
    for name, value in record.items():
        if isinstance(value, int | float) and name not in NO_LOSS:
            curves.losses.setdefault(name, Curve()).add(step, value)
    curves.learning_rate.add(step, record["rate"])
    curves.norm.add(step, record["norm"])
    curves.speed.add(step, record["audio_seconds_per_second"])
    seconds = record.get("seconds", {})
    for part, value in seconds.items():
        curves.time.setdefault(part, Curve()).add(
            step, value / max(SHORTEST, sum(seconds.values()))
        )


def _add_validation(curves: Curves, step: int, record: Mapping) -> None:
    for name, value in record.items():
        if name.startswith("valid/"):
            kind = curves.rates if name in ("valid/wer", "valid/cer") else curves.losses
            kind.setdefault(name, Curve()).add(step, value)
