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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from asrtool import distributed
from asrtool.errors import UserError
from asrtool.log import first_few, plural
from asrtool.trainer import optim, parallel
from asrtool.trainer.capacity import memory
from asrtool.trainer.capacity.memory import Bound, Overflow, Shape
from asrtool.trainer.objective import Objective, cosine
from asrtool.trainer.precision import autocast
from asrtool.trainer.troubles import describe
from asrtool.types import Batch, LossReport, Trainable

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
    # micro-batches of all ranks that did not fit into memory, and were cut
    overflows: tuple[Overflow, ...] = ()
    # details of a non-finite step, which was skipped, of all ranks; None: the step was applied
    bad: list[dict] | None = None


class Passes(NamedTuple):
    """What the passes of a step, forward and backward, leave besides gradients."""

    own: list[tuple[Batch, LossReport]]  # of this rank's micro-batches
    spare: list[tuple[Batch, LossReport]]  # of those that only keep it in step with other ranks
    overflows: list[Overflow]  # of this rank


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
        out_of_memory: str = "cut",  # `trainer.out_of_memory`
    ) -> None:
        self.config, self.objective, self.device = config, objective, device
        self.seed, self.planned = seed, planned
        self.precision = precision
        self.ranks = parallel.choose(shared, out_of_memory)
        self._repeats = self.ranks.repeats and out_of_memory == "cut"
        self.bound = Bound()  # of micro-batches, the same on all ranks
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
        return autocast(self.device, self.precision)

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
        batch = self.bound.cut([batch])[0]  # a resumed run knows what does not fit
        longest = int(batch.inputs.lengths.max())
        shape = f"{plural(len(batch), 'utterance')} of up to {plural(longest, 'frame')}"
        self.spare = memory.rows(batch, slice(batch.views))
        # memory is largest when everything is unfrozen
        optim.freeze(self.config, self.model, max(optim.unfreeze_steps(self.config), default=1))
        try:
            self.rehearse(batch)
        except RuntimeError as error:
            if not memory.ran_out(error):
                raise
            raise UserError(
                f"the longest batch ({shape}) does not fit into memory: lower "
                "data.batch.max_seconds_per_device, which splits the same step into smaller "
                "parts (`asrtool fit` proposes a number), or data.max_seconds; without "
                "data.batch.max_seconds_per_device, lower data.batch.seconds"
            ) from error
        if self.device.type != "cuda":
            return shape
        peak = torch.cuda.max_memory_allocated(self.device) / GIGABYTE
        whole = torch.cuda.get_device_properties(self.device).total_memory / GIGABYTE
        return f"{shape}, {peak:.1f} of {whole:.1f} GB"

    def speed(self, batch: Batch) -> float:
        """Inputs a second, without padding, of forward and backward passes, after a dry run."""
        batch = self.bound.cut([batch])[0]
        began = time.monotonic()
        self.rehearse(batch)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return int(batch.inputs.lengths.sum()) / max(time.monotonic() - began, 1e-9)

    def rehearse(self, batch: Batch) -> None:
        """Forward and backward of a batch, which leave nothing behind."""
        self._seed(0)
        # running statistics must not change, so that the run is the same without this
        undo = self._undo()
        try:
            _, report = self.evaluate(self.model, batch.to(self.device))
            self.scaler.scale(report.total).backward()
        finally:
            undo()

    def update(self, group: StepBatches, step: int, flags: Sequence[float] = ()) -> StepResult:
        """Apply update number `step`. flags: numbers to sum over ranks in the same collective."""
        self._prepare(step)
        self._seed(step)
        self.objective.begin(step, self.planned)
        self._clock.start()

        # Forward, losses and backward of each micro-batch; gradients add up in the parameters.
        passes = self._pass(group, step)
        if self._unchecked:
            self._check_gradients()
        self.ranks.reduce(self.model)
        self._clock.lap("backward")

        # Sum the logged numbers over ranks, clip, read all, then update. All ranks see the same
        # sums, so they agree on whether the step is finite.
        sums = self._sums(passes.own, (*flags, len(passes.overflows)))
        self._clock.lap("wait")
        read = self._read(
            sums, self._clip(), [(batch, report.skipped) for batch, report in passes.own]
        )
        *flags, failures = read.flags
        self._apply(step, read)
        self._clock.lap("update")

        result = StepResult(
            loss=read.sums["loss"] / group.count,
            frames=read.sums["frames"],
            terms={name: read.sums[name] / group.count for name in self.objective.terms},
            norm=read.norm,
            utterances=group.count,
            flags=tuple(flags),
            overflows=self._share(passes.overflows) if failures else (),
            skipped=read.skipped,
            seconds=self._clock.seconds(),
        )
        if read.finite or read.overflow:
            return result
        # A non-finite step was skipped. Run it again with the same seed to find the cause.
        self._seed(step)
        known = [
            describe(self.model, self.autocast, batch, report)
            for batch, report in (*passes.own, *passes.spare)
        ]
        own_batches = known[: len(passes.own)]
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

    def _pass(self, group: StepBatches, step: int) -> Passes:
        """Forward, losses and backward of this rank's micro-batches.

        If one does not fit into memory, it is cut and the step begins again, while the other ranks
        wait with the sum over ranks. Raises `UserError` if a single utterance does not fit.
        """
        overflows: list[Overflow] = []
        undo = self._undo()
        while True:
            own = self.bound.cut(group.batches)
            # DDP averages gradients over ranks: world_size turns the mean back into a sum
            share = distributed.world_size() / group.count
            reports, failed = self._accumulate(own, share, step)
            if failed is None:
                return Passes(reports[: len(own)], reports[len(own) :], overflows)
            # The failed pass has been left, and with it the tensors that its frames held.
            undo()
            memory.release()
            overflow = Overflow(rank=distributed.rank(), ids=failed.ids, shape=Shape.of(failed))
            overflows.append(overflow)
            self.bound.add([overflow.shape])
            self._seed(step)

    def _accumulate(
        self, own: Sequence[Batch], share: float, step: int
    ) -> tuple[list[tuple[Batch, LossReport]], Batch | None]:
        """Add the gradients of micro-batches; their reports, and the one that did not fit."""
        batches = self._batches(own)
        reports = []
        for number, batch in enumerate(batches):
            # seeded again, so that `random` draws the same in every micro-batch (see above)
            random.seed(f"{self.seed}/{step}")
            try:
                sent = batch.to(self.device, non_blocking=True)
                with self.ranks.accumulating(self._wrapped, number == len(batches) - 1):
                    _, report = self.evaluate(self._wrapped, sent)
                    self._clock.lap("forward")
                    scale = share if number < len(own) else 0.0
                    self.scaler.scale(report.total * scale).backward()
                    self._clock.lap("backward")
            except RuntimeError as error:
                if not memory.ran_out(error):
                    raise
                if not self._repeats or memory.is_one(batch):
                    raise UserError(self._advice(batch)) from error
                return [], batch
            # detached, so that the graph is freed before the next micro-batch builds its own
            reports.append((sent, replace(report, total=report.total.detach())))
        return reports, None

    def _advice(self, batch: Batch) -> str:
        """What to do about a micro-batch that does not fit and is not cut."""
        ids = batch.ids[:: batch.views]
        size = f"{plural(len(ids), 'utterance')} ({first_few(ids)})"
        if self._repeats:
            return f"{size} alone does not fit into memory: lower data.max_seconds"
        why = (
            "trainer.parallel shards the model, and all ranks compute each layer together"
            if self.ranks.lockstep
            else "trainer.out_of_memory is stop"
        )
        return (
            f"a micro-batch of {size} does not fit into memory, and is not repeated in smaller "
            f"parts because {why}: lower data.batch.max_seconds_per_device (`asrtool fit` "
            "proposes a number); the same command then continues from the last checkpoint"
        )

    def _undo(self) -> Callable[[], None]:
        """A function that clears the gradients and gives buffers, such as running statistics, the
        values that they have now.
        """
        buffers = list(self.model.buffers())
        values = [buffer.clone() for buffer in buffers]

        def undo() -> None:
            self.model.zero_grad(set_to_none=True)
            for buffer, value in zip(buffers, values, strict=True):
                buffer.copy_(value)

        return undo

    def _share(self, own: Sequence[Overflow]) -> tuple[Overflow, ...]:
        """The overflows of all ranks, which all of them learn from; a collective."""
        overflows = tuple(one for rank in distributed.gather_objects(list(own)) for one in rank)
        self.bound.add(overflow.shape for overflow in overflows)
        return overflows

    def _batches(self, own: Sequence[Batch]) -> Sequence[Batch]:
        """This rank's micro-batches, padded with a spare utterance to the largest number of any
        rank if ranks run in lockstep.
        """
        if own:
            self.spare = self.spare or memory.rows(own[0], slice(own[0].views))
        # the sum over ranks needs each gradient, so even a rank without utterances needs one pass
        number = max(1, len(own))
        if self.ranks.lockstep:
            number = distributed.largest(number)
        if number > len(own) and self.spare is None:
            raise UserError("no utterance of the first step can be read; see the messages above")
        return [*own, *[self.spare] * (number - len(own))]

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
