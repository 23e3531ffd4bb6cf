"""One optimizer step: forward and backward over micro-batches and ranks, clipping, update.

The gradient is that of  (sum over the utterances of the whole step) / (their number),  however the
step is split: every micro-batch adds its sum times world / count, and DDP's mean over ranks cancels
world again.

Random numbers of torch (such as dropout) are a function of (seed, step, rank). Those of Python's
`random` are one of (seed, step) alone, so they are equal on all ranks and in every micro-batch:
whatever decides which parameters take part must be drawn from `random`. No random state needs to be
saved.

Nothing in a step waits for the device but one read (`numbers`), in front of the update: it has
all numbers that the host decides by or reports.
"""

from __future__ import annotations

import hashlib
import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from asrtool import distributed
from asrtool.errors import UserError
from asrtool.log import first_few, plural
from asrtool.trainer import optim, parallel
from asrtool.trainer.objective import Objective, cosine
from asrtool.trainer.precision import DTYPES
from asrtool.trainer.troubles import describe
from asrtool.types import Batch, LossReport, Padded, Trainable

GIGABYTE = 1e9


class StepBatches(Protocol):
    """The loader's output for one step.

    count: utterances of the whole step, over all ranks.
    """

    count: int
    batches: Sequence[Batch]  # this rank's micro-batches; may be empty
    epoch: int
    index: int  # index of the step in its epoch
    last: bool  # last step of its epoch


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """The result of one step, over all ranks."""

    loss: float  # weighted, per utterance
    terms: Mapping[str, float]  # unweighted, per utterance
    norm: float  # of the gradient before clipping
    utterances: int
    frames: float  # input frames or samples without padding
    flags: tuple[float, ...]  # the flags that ranks passed in, summed
    skipped: tuple[str, ...]  # ids of this rank's utterances without a finite loss
    seconds: Mapping[str, float]  # this rank's time by part (`PARTS`)
    # details of a non-finite step, which was skipped, of all ranks; None: the step was applied
    bad: list[dict] | None = None


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """What the host reads of a step before its update."""

    sums: Mapping[str, float]  # loss, frames and terms, over all ranks
    flags: tuple[float, ...]  # over all ranks
    norm: float  # of the gradient before clipping
    scale: float  # of the loss; 1 but in fp16
    skipped: tuple[str, ...]  # ids of this rank

    @property
    def finite(self) -> bool:
        return math.isfinite(self.sums["loss"]) and math.isfinite(self.norm)

    @property
    def overflow(self) -> bool:
        """Whether only the scale of fp16, which is lowered down to 1, may be at fault."""
        finite = math.isfinite(self.sums["loss"])
        return finite and not math.isfinite(self.norm) and self.scale > 1.0


def numbers(values: Tensor) -> list[float]:
    """The values (N,) on the host, once the device has computed them."""
    return values.tolist()


class Stepper:
    """Holds the model's wrapper, the optimizer and the gradient scaler, and applies updates."""

    def __init__(
        self,
        config: optim.OptimConfig,
        model: Trainable,
        objective: Objective,
        *,
        planned: int,
        precision: str,
        device: torch.device,
        seed: int,
        shared: str = "ddp",  # `trainer.parallel`
    ) -> None:
        self.config, self.objective, self.device = config, objective, device
        self.seed, self.planned = seed, planned
        self.precision = DTYPES[precision]
        self.ranks = parallel.choose(shared)
        self.model = self.ranks.prepare(model, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.optimizer, self.schedule = optim.build(config, self.model, planned)
        self._wrapped: nn.Module | None = None
        self._unchecked = True
        self._clock = Clock(device)
        # one utterance, for a rank without any in a step where all ranks must take part
        self.spare: Batch | None = None

    def rate(self, step: int) -> float:
        """The learning rate of update number `step`, before the groups' `lr_scale`."""
        return self.config.lr * self.schedule.factor(step)

    def autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device.type, self.precision, enabled=self.precision != torch.float32
        )

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[object, LossReport]:
        """The model's outputs and the losses, which are computed outside autocast."""
        with self.autocast():
            outputs = model(batch)
        return outputs, self.objective(outputs, batch)

    def dry_run(self, batch: Batch) -> str:
        """Forward and backward of the longest batch with all parameters, without an update.

        Returns a description of the batch, with the peak memory on a GPU. Raises `UserError` if the
        batch does not fit into memory.
        """
        longest = int(batch.inputs.lengths.max())
        shape = f"{plural(len(batch), 'utterance')} of up to {plural(longest, 'frame')}"
        # running statistics must not change, so that the run is the same without this check
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self.spare = _first_utterance(batch)
        # memory is largest when everything is unfrozen
        optim.freeze(self.config, self.model, max(optim.unfreeze_steps(self.config), default=1))
        self._seed(0)
        try:
            _, report = self.evaluate(self.model, batch.to(self.device))
            self.scaler.scale(report.total).backward()
        except RuntimeError as error:
            # on a GPU this is torch.OutOfMemoryError, a RuntimeError; a CPU raises a plain one
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            raise UserError(
                f"the longest batch ({shape}) does not fit into memory: lower "
                "data.batch.max_seconds_per_device, which splits the same step into smaller "
                "parts, or data.max_seconds; without data.batch.max_seconds_per_device, lower "
                "data.batch.seconds"
            ) from error
        finally:
            self.model.zero_grad(set_to_none=True)
            for buffer, value in buffers:
                buffer.copy_(value)
        if self.device.type != "cuda":
            return shape
        peak = torch.cuda.max_memory_allocated(self.device) / GIGABYTE
        whole = torch.cuda.get_device_properties(self.device).total_memory / GIGABYTE
        return f"{shape}, {peak:.1f} of {whole:.1f} GB"

    def update(self, group: StepBatches, step: int, flags: Sequence[float] = ()) -> StepResult:
        """Apply update number `step`. flags: numbers to sum over ranks in the same collective."""
        self._prepare(step)
        self._seed(step)
        self.objective.begin(step, self.planned)
        self._clock.start()

        # Forward, losses and backward of each micro-batch; gradients add up in the parameters.
        batches = self._batches(group)
        reports = []
        for number, batch in enumerate(batches):
            real = number < len(group.batches)
            # DDP averages gradients over ranks: world_size turns the mean back into a sum
            share = distributed.world_size() / group.count if real else 0.0
            batch = batch.to(self.device, non_blocking=True)
            # seeded again, so that `random` draws the same in every micro-batch (see above)
            random.seed(f"{self.seed}/{step}")
            with self.ranks.accumulating(self._wrapped, number == len(batches) - 1):
                _, report = self.evaluate(self._wrapped, batch)
                self._clock.lap("forward")
                self.scaler.scale(report.total * share).backward()
                self._clock.lap("backward")
            # detached, so that the graph is freed before the next micro-batch builds its own
            reports.append((batch, replace(report, total=report.total.detach())))
        if self._unchecked:
            self._check_gradients()

        # Sum the logged numbers over ranks, clip, read all, then update. All ranks see the same
        # sums, so they agree on whether the step is finite.
        counted = reports[: len(group.batches)]
        sums = self._sums(counted, flags)
        self._clock.lap("wait")
        read = self._read(
            sums, self._clip(), [(batch, report.skipped) for batch, report in counted]
        )
        self._apply(step, read)
        self._clock.lap("update")

        result = StepResult(
            loss=read.sums["loss"] / group.count,
            frames=read.sums["frames"],
            terms={name: read.sums[name] / group.count for name in self.objective.terms},
            norm=read.norm,
            utterances=group.count,
            flags=read.flags,
            skipped=read.skipped,
            seconds=self._clock.seconds(),
        )
        if read.finite or read.overflow:
            return result
        # A non-finite step was skipped. Run it again with the same seed to find the cause.
        self._seed(step)
        known = [describe(self.model, self.autocast, batch, report) for batch, report in reports]
        own_batches = known[: len(group.batches)]
        return replace(
            result,
            bad=[entry for entries in distributed.gather_objects(own_batches) for entry in entries],
        )

    def cosine(self, term: str, batch: Batch) -> dict[str, float] | None:
        """The cosine between a loss's gradient and that of the others, on this rank's batch."""

        def outputs_of(batch: Batch) -> object:
            with self.autocast():
                return self.model(batch)

        return cosine(self.model, self.objective, term, outputs_of, batch.to(self.device))

    # -- inside a step ---------------------------------------------------------

    def _batches(self, group: StepBatches) -> Sequence[Batch]:
        """This rank's micro-batches, padded with a spare utterance to the largest number of any
        rank if ranks run in lockstep.
        """
        if group.batches:
            self.spare = self.spare or _first_utterance(group.batches[0])
        # DDP sums gradients in the backward pass, so even a rank without utterances needs one pass
        number = max(1, len(group.batches))
        if self.ranks.lockstep:
            number = distributed.largest(number)
        if number > len(group.batches) and self.spare is None:
            raise UserError("no utterance of the first step can be read; see the messages above")
        return [*group.batches, *[self.spare] * (number - len(group.batches))]

    def _prepare(self, step: int) -> None:
        """Unfreeze the parameters that are trained from this step on, and rewrap the model."""
        changed = (
            optim.freeze(self.config, self.model, step)
            if step in optim.unfreeze_steps(self.config)
            else False
        )
        if self._wrapped is None:
            optim.freeze(self.config, self.model, step)
        if self._wrapped is not None and not changed:
            return
        self._unchecked = True
        self._wrapped = None  # free the former wrapper before there is a new one
        self._wrapped = self.ranks.wrap(self.model, self.device)

    def _sums(self, reports: Sequence[tuple[Batch, LossReport]], flags: Sequence[float]) -> Tensor:
        """Loss, frames and terms, then the flags, summed over utterances and ranks: (N,)."""
        terms = self.objective.terms
        # one vector, so that a step has a single collective besides the gradients
        values = torch.zeros(2 + len(terms), dtype=torch.float64, device=self.device)
        for batch, report in reports:
            rows = [
                report.total,
                batch.inputs.lengths.sum(),
                *(report.terms[name].sum() for name in terms),
            ]
            values += torch.stack([row.to(torch.float64) for row in rows])
        own = torch.tensor(list(flags), dtype=torch.float64)
        values = torch.cat([values, own.to(self.device, non_blocking=True)])
        return distributed.all_sum(values)

    def _clip(self) -> Tensor:
        """Clip the gradient; returns its norm before, ()."""
        parameters = [
            parameter for parameter in self.model.parameters() if parameter.grad is not None
        ]
        self.scaler.unscale_(self.optimizer)
        return parallel.whole(nn.utils.clip_grad_norm_(parameters, self.config.clip))

    def _read(self, sums: Tensor, norm: Tensor, skipped: Sequence[tuple[Batch, Tensor]]) -> Numbers:
        """Read all numbers of the step from the device: the one place that waits for it."""
        terms = self.objective.terms
        scale = self.scaler.scale(torch.ones((), device=self.device))  # 1 but in fp16
        parts = [sums, torch.stack([norm, scale]), *(mask for _, mask in skipped)]
        values = numbers(torch.cat([part.to(torch.float64) for part in parts]))
        found, (norm, scale, *masks) = values[: len(sums)], values[len(sums) :]
        ids = [name for batch, _ in skipped for name in batch.ids]
        return Numbers(
            sums=dict(zip(("loss", "frames", *terms), found, strict=False)),
            flags=tuple(found[2 + len(terms) :]),
            norm=norm,
            scale=scale,
            skipped=tuple(name for name, without in zip(ids, masks, strict=True) if without),
        )

    def _apply(self, step: int, read: Numbers) -> None:
        """Update, if everything is finite."""
        if read.finite:
            optim.set_rate(self.optimizer, self.rate(step))
            # `scaler.step` would read once more whether the gradient is finite
            self.optimizer.step()
        if read.finite or read.overflow:
            self.scaler.update()
        elif self.scaler.is_enabled():
            # keep the scale: the batch is at fault
            self.scaler.update(read.scale)
        self.optimizer.zero_grad(set_to_none=True)

    def _check_gradients(self) -> None:
        """Raise `UserError` if a trainable parameter has no gradient: it would never be trained."""
        self._unchecked = False
        idle = [
            name
            for name, value in self.model.named_parameters()
            if value.requires_grad and value.grad is None
        ]
        if idle:
            raise UserError(
                f"{plural(len(idle), 'trainable parameter')} got no gradient: "
                f"{first_few(idle, 8)}; freeze them in optim.groups, remove their module, or give "
                "a weight to the loss that uses them"
            )

    def _seed(self, step: int) -> None:
        text = f"{self.seed}/{step}/{distributed.rank()}"
        torch.manual_seed(
            int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
        )
        random.seed(f"{self.seed}/{step}")


def _first_utterance(batch: Batch) -> Batch:
    """The first utterance alone, for ranks without any in a step; its loss is multiplied by 0."""
    rows = slice(batch.views)
    return replace(
        batch,
        ids=batch.ids[rows],
        inputs=Padded(batch.inputs.data[rows], batch.inputs.lengths[rows]),
        targets=Padded(batch.targets.data[rows], batch.targets.lengths[rows]),
        labels={name: value[rows] for name, value in batch.labels.items()},
        texts=batch.texts[rows],
    )


# -- timing ----------------------------------------------------------------


PARTS = (
    "data",  # waiting for the loader (measured by the trainer)
    "forward",  # forward pass and losses
    # backward pass, with the part of the summation over ranks that it does not hide
    "backward",
    "wait",  # waiting for the other ranks
    "update",  # clipping and optimizer
)


class Clock:
    """Measures the time of consecutive parts.

    On a GPU it records events in the stream and never waits for one: a part that is not over when
    the seconds are asked for, such as the update of a step, counts among those of the next step.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._last: float | torch.cuda.Event | None = None
        self._laps: list[tuple[str, float | torch.cuda.Event, float | torch.cuda.Event]] = []

    def start(self) -> None:
        self._last = self._now()

    def lap(self, part: str) -> None:
        """Assign the time since the last lap, or the start, to `part`."""
        now = self._now()
        self._laps.append((part, self._last, now))
        self._last = now

    def seconds(self) -> Mapping[str, float]:
        """Part -> seconds of the laps that are over, each reported once."""
        total: dict[str, float] = {}
        while self._laps and (not self._on_gpu or self._laps[0][2].query()):
            part, before, after = self._laps.pop(0)
            elapsed = before.elapsed_time(after) / 1000 if self._on_gpu else after - before
            total[part] = total.get(part, 0.0) + elapsed
        return total

    def _now(self) -> float | torch.cuda.Event:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
