"""A training that is interrupted at a chosen moment: what tests/unit/trainer/test_interruptions.py
starts.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from asrtool.bin import train
from asrtool.data.loader import StepLoader
from asrtool.system import atomic
from asrtool.trainer import averaging, checkpoint, records, trainer, validation
from asrtool.trainer.step import Stepper
from tests.toy_corpus import arguments
from tests.toy_ranks import join

CHANGES = (
    "trainer.epochs=6 trainer.validate_every=3 trainer.average=3 "
    "trainer.save_every_seconds=0 data.batch.seconds=1"
)
# name -> what is called at that moment of training
MOMENTS = {
    "before a step": (Stepper, "_prepare"),
    "between backward pass and update": (Stepper, "_sums"),
    "after an update": (trainer.Trainer, "_count"),
    "in a validation": (validation, "measure_batch"),
    "while a file is written": (checkpoint, "save_file"),
    "before the renaming": (atomic, "replace_folder"),
    "after the renaming": (records, "point"),
    "while older ones are deleted": (checkpoint, "prune"),
    "while the average is made": (averaging, "average"),
}


@contextlib.contextmanager
def power_failure(monkeypatch: pytest.MonkeyPatch, epoch: int, index: int) -> Iterator[None]:
    """A training inside ends with an error before step `index` of `epoch`, both from 0."""
    steps = StepLoader.steps

    def stopping(loader: StepLoader, *begin: int):
        for step in steps(loader, *begin):
            if (step.epoch, step.index) == (epoch, index):
                raise OSError("the power fails")
            yield step

    with monkeypatch.context() as patch:
        patch.setattr(StepLoader, "steps", stopping)
        with pytest.raises(OSError, match="the power fails"):
            yield


class Interruption(NamedTuple):
    """`number` is sent by the rank to itself when it comes to `moment` for the `time`-th time."""

    rank: int
    moment: str
    time: int
    number: signal.Signals


def run(
    rank: int,
    world: int,
    port: int,
    data: Path,
    exp: Path,
    interruption: Interruption | None = None,
    changes: str = "",
) -> None:
    if world > 1:
        join(rank, world, port)
    # of a view that a unit returns: its gradients may be wrong
    warnings.filterwarnings("error", "FSDP2-wrapped module")
    log = os.open(exp.with_name(f"said-{rank}"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 2)
    sys.argv = ["train"]
    if interruption is not None and interruption.rank == rank:
        prepare(interruption)
    train.main(arguments(data, exp, "--set", f"{CHANGES} {changes}"))


def prepare(interruption: Interruption) -> None:
    owner, name = MOMENTS[interruption.moment]
    call: Callable = getattr(owner, name)
    times = 0

    def interrupted(*given: object, **named: object) -> object:
        nonlocal times
        times += 1
        if times == interruption.time:
            print(
                f"interrupted {interruption.moment} by {interruption.number.name}",
                file=sys.stderr,
                flush=True,
            )
            if name == "save_file":  # half a file is there
                Path(given[1]).write_bytes(b"half a file")
            os.kill(os.getpid(), interruption.number)
        return call(*given, **named)

    setattr(owner, name, interrupted)
