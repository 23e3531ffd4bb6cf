"""How many seconds of audio fit on a device: what `asrtool fit` measures and proposes.

    bytes of a micro-batch of n equal rows = fixed + n * row

The two numbers are taken from micro-batches of one utterance, repeated, of growing size. `row` per
second differs between utterances: attention grows with the square of the length, and what short
ones have most is tokens. So the longest, the shortest and the one with most text per second are
measured, and the most expensive of them decides.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from asrtool.errors import UserError
from asrtool.trainer import optim
from asrtool.trainer.capacity import memory
from asrtool.trainer.capacity.peak import Peak
from asrtool.trainer.step import GIGABYTE, Stepper
from asrtool.types import Batch

MARGIN = 0.1  # share of the memory that is left free
# what a GPU holds besides tensors: its context, libraries, buffers of nccl; counted on a CPU only
CONTEXT = 1.5 * GIGABYTE
PATIENCE = 30.0  # seconds of a pass from which on larger ones are not tried
STEADY = 0.02  # relative difference of two slopes that are taken for one
ROUNDING = 1e-9  # relative slack, so that rows may fill a size exactly
LOWER = 0.9  # factor of a proposal that turned out not to fit


@dataclass(frozen=True, kw_only=True)
class Sample:
    """An utterance of the training set. batch: count -> a batch of it so many times."""

    name: str
    batch: Callable[[int], Batch]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The memory of micro-batches of one sample."""

    name: str
    length: float  # seconds (or tokens) of a row, padding included
    rows: int  # of the largest micro-batch that was measured
    peak: float  # its bytes
    fixed: float  # bytes
    row: float  # bytes

    def most(self, budget: float) -> float:
        """Seconds (or tokens) that fit into so many bytes."""
        return max(0.0, budget - self.fixed) / max(self.row, 1.0) * self.length


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Seconds (or tokens) for one device, and why."""

    size: float
    costs: tuple[Cost, ...]
    update: float  # bytes at the update of the weights, which no micro-batch changes
    budget: float  # bytes


def propose(
    stepper: Stepper,
    samples: Sequence[Sample],
    unit: float,
    amount: float,
    margin: float = MARGIN,
    most: float = math.inf,
) -> Proposal:
    """unit: seconds of an input, 1 for tokens; amount: bytes of the device; most: seconds (or
    tokens) of the global batch, of which no more are proposed.

    On a GPU the proposal is tried, and lowered until it fits. Raises `UserError` if not even one
    utterance fits.
    """
    budget = amount * (1 - margin) - (0 if stepper.device.type == "cuda" else CONTEXT)
    # an update first: it makes the state of the optimizer, which is there in every later pass
    last = max(optim.unfreeze_steps(stepper.config), default=1)
    with Peak(stepper.device, _tensors(stepper)) as peak:
        stepper.update(_step(samples[0].batch(1)), last)
    costs = tuple(measure(stepper, sample, unit, budget, most) for sample in samples)
    size = min(most, *(cost.most(budget) for cost in costs))
    if stepper.device.type == "cuda":
        size = tried(stepper, samples, unit, size, budget)
    longest = max(cost.length for cost in costs)
    if size < longest or peak.bytes > budget:
        needed = max(peak.bytes, *(cost.fixed + cost.row for cost in costs))
        raise UserError(
            f"an utterance of {longest:.1f} {'tokens' if unit == 1 else 'seconds'} does not fit, "
            "however the step is cut: alone it takes "
            f"{needed / GIGABYTE:.2f} GB, and {max(0.0, budget) / GIGABYTE:.2f} of "
            f"{amount / GIGABYTE:.2f} GB can be used; lower data.max_seconds, set "
            "trainer.activation_checkpointing: true, or take a smaller model"
        )
    return Proposal(size=size, costs=costs, update=float(peak.bytes), budget=budget)


def measure(stepper: Stepper, sample: Sample, unit: float, budget: float, most: float) -> Cost:
    """The memory of a sample's micro-batches, of 1, 2, 4 ... utterances."""
    found: list[tuple[int, float]] = []
    for count in (2**power for power in range(15)):
        batch = sample.batch(count)
        length = batch.inputs.data.shape[1] * unit
        began = time.monotonic()
        taken = _peak(stepper, batch)
        if taken is None:
            break
        found.append((len(batch), taken))
        slow = time.monotonic() - began > PATIENCE
        # a GPU reserves memory in pieces, which large batches hide; a count of tensors is exact
        enough = taken > budget / 4 if stepper.device.type == "cuda" else settled(found)
        if len(found) > 1 and (enough or len(batch) * length > most or slow):
            break
    if len(found) < 2:
        raise UserError(
            f"two utterances like the {sample.name} one do not fit into memory: lower "
            "data.max_seconds, or set trainer.activation_checkpointing: true"
        )
    (few, low), (rows, high) = found[-2:]
    row = (high - low) / (rows - few)
    return Cost(
        name=sample.name, length=length, rows=rows, peak=high, fixed=high - rows * row, row=row
    )


def settled(found: Sequence[tuple[int, float]]) -> bool:
    """Whether bytes grow linearly with rows by now. With few rows the peak is elsewhere in the
    step, such as at its end, where all gradients are there.
    """
    if len(found) < 3:
        return False
    before, now = (
        (high - low) / (many - few) for (few, low), (many, high) in (found[-3:-1], found[-2:])
    )
    return abs(now - before) <= STEADY * now


def tried(
    stepper: Stepper, samples: Sequence[Sample], unit: float, size: float, budget: float
) -> float:
    """The largest of `size`, LOWER * `size` ... with which all samples fit."""
    for sample in samples:
        one = sample.batch(1)
        length = len(one) * one.inputs.data.shape[1] * unit
        while (count := int(size / length * (1 + ROUNDING))) > 1:
            peak = _peak(stepper, sample.batch(count))
            if peak is not None and peak <= budget:
                break
            size *= LOWER
    return size


def _peak(stepper: Stepper, batch: Batch) -> float | None:
    """Bytes of a micro-batch's passes, and of what is there beside them: weights, gradients of an
    earlier micro-batch, the optimizer's state; None: too many.
    """
    try:
        with Peak(stepper.device, _tensors(stepper)) as peak:
            for parameter in stepper.model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            stepper.rehearse(batch)
    except RuntimeError as error:
        if not memory.ran_out(error):
            raise
        peak = None
    if peak is None:
        memory.release()
    return None if peak is None else float(peak.bytes)


def _tensors(stepper: Stepper) -> Iterator[Tensor]:
    """What is there before a pass: weights, buffers, the optimizer's state."""
    yield from stepper.model.parameters()
    yield from stepper.model.buffers()
    for state in stepper.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, torch.Tensor))


def _step(batch: Batch) -> SimpleNamespace:
    """A step of one micro-batch: `StepBatches`."""
    return SimpleNamespace(count=len(batch), batches=[batch], epoch=0, index=0, last=False)
