"""One optimizer step: forward and backward over micro-batches and ranks, clipping, the update; and what to do with non-
finite values.

The gradient is that of  (sum over the utterances of the whole step) / (their number),  however the step is cut: every
micro-batch adds its sum times world / count, and DDP's mean over ranks takes the world out again.

Randomness (dropout and the like) is a function of (seed, step, rank), and Python's `random` one of (seed, step) alone,
equal on all ranks and in every micro-batch: what decides which parameters take part must be drawn from `random`. So no
random state needs saving.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from asrtool import distributed
from asrtool.train import optim
from asrtool.train.nonfinite import describe
from asrtool.train.objective import Objective
from asrtool.types import Batch, LossReport, Padded

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
GIGABYTE = 1e9


class TrainError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


class StepBatches(Protocol):
    """What the loader gives for one step. `count`: utterances of the whole step, all ranks together."""

    count: int
    batches: Sequence[Batch]  # this rank's micro-batches; may be empty
    epoch: int
    index: int  # of the step in its epoch
    last: bool  # of its epoch


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did, all ranks together."""

    loss: float  # weighted, per utterance
    terms: Mapping[str, float]  # unweighted, per utterance
    norm: float  # of the gradient before clipping
    utterances: int
    frames: float  # input frames or samples without padding
    flags: tuple[float, ...]  # what the ranks handed in, summed
    skipped: tuple[str, ...]  # of this rank: ids that a loss could not rate
    bad: list[dict] | None = None  # a non-finite step, which changed nothing: what is known about it, by rank


class Stepper:
    """Owns the model's wrapper, the optimizer and the scaler."""

    def __init__(
        self,
        config: optim.OptimConfig,
        model: nn.Module,
        objective: Objective,
        *,
        planned: int,
        precision: str,
        device: torch.device,
        seed: int,
    ) -> None:
        self.config, self.model, self.objective, self.device = config, model, objective, device
        self.seed = seed
        self.precision = DTYPES[precision]
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.optimizer, self.schedule = optim.build(config, model, planned)
        self._wrapped: nn.Module | None = None
        self._spare: Batch | None = None
        self._unchecked = True

    def rate(self, step: int) -> float:
        """Learning rate of update number `step`, before the groups' `lr_scale`."""
        return self.config.lr * self.schedule.factor(step)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def evaluate(self, model: nn.Module, batch: Batch) -> tuple[object, LossReport]:
        """The model's outputs and the objective's report; losses are computed outside autocast."""
        with self.autocast():
            outputs = model(batch)
        return outputs, self.objective(outputs, batch)

    def dry_run(self, batch: Batch) -> str:
        """Forward and backward of the longest batch with all that is ever trained; changes nothing."""
        shape = f"{len(batch)} utterances of up to {int(batch.inputs.lengths.max())} frames"
        buffers = [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        self._spare = _first_utterance(batch)
        optim.freeze(self.config, self.model, max(optim.thaw_steps(self.config), default=1))
        self._seed(0)
        try:
            _, report = self.evaluate(self.model, batch.to(self.device))
            self.scaler.scale(report.total).backward()
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU raises a plain one
            if not isinstance(error, torch.OutOfMemoryError) and "allocate" not in str(error):
                raise
            raise TrainError(
                f"the longest batch ({shape}) does not fit into memory: lower data.batch.max_seconds_per_device, or "
                "data.max_seconds"
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
        """Update number `step`; `flags` are summed over the ranks on the way."""
        self._prepare(step)
        self._seed(step)
        batches = self._batches(group)
        share = distributed.world_size() / group.count if group.batches else 0.0
        reports = []
        for number, batch in enumerate(batches):
            batch = batch.to(self.device, non_blocking=True)
            random.seed(f"{self.seed}/{step}")
            with self._synchronising(number == len(batches) - 1):
                _, report = self.evaluate(self._wrapped, batch)
                self.scaler.scale(report.total * share).backward()
            reports.append((batch, replace(report, total=report.total.detach())))
        if self._unchecked:
            self._check_gradients()
        sums, flags = self._sums(reports if group.batches else [], flags)
        norm = self._apply(step, math.isfinite(sums["loss"]))
        result = StepResult(
            loss=sums.pop("loss") / group.count,
            frames=sums.pop("frames"),
            terms={name: value / group.count for name, value in sums.items()},
            norm=norm,
            utterances=group.count,
            flags=flags,
            skipped=tuple(name for _, report in reports for name in report.skipped) if group.batches else (),
        )
        if math.isfinite(result.loss) and (math.isfinite(norm) or self._scaler_at_work()):
            return result
        self._seed(step)
        mine = [describe(self.model, self.autocast, batch, report) for batch, report in reports]
        return replace(result, bad=[entry for entries in distributed.gather_objects(mine) for entry in entries])

    # -- inside a step ---------------------------------------------------------

    def _batches(self, group: StepBatches) -> Sequence[Batch]:
        """This rank's micro-batches; where it has none, one utterance that takes part in the collectives only."""
        if group.batches:
            self._spare = self._spare or _first_utterance(group.batches[0])
            return group.batches
        if self._spare is None:
            raise TrainError("not one utterance of the first step can be read; the messages above say why")
        return [self._spare]

    def _prepare(self, step: int) -> None:
        """Thaw what is trained from this step on; DDP fixes its parameters when it is built, so it is built again."""
        changed = optim.freeze(self.config, self.model, step) if step in optim.thaw_steps(self.config) else False
        if self._wrapped is None:
            optim.freeze(self.config, self.model, step)
        if self._wrapped is not None and not changed:
            return
        self._unchecked = True
        self._wrapped = self.model
        if dist.is_initialized():
            gc.collect()  # the former wrapper's hooks go with it
            where = [self.device.index] if self.device.type == "cuda" else None
            # A depthwise kernel's gradient differs from it in the stride of a dimension of size 1, which costs nothing.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            self._wrapped = DistributedDataParallel(self.model, device_ids=where, gradient_as_bucket_view=True)

    def _synchronising(self, last: bool) -> contextlib.AbstractContextManager:
        """DDP sums gradients over ranks in the last backward pass only."""
        if last or not isinstance(self._wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return self._wrapped.no_sync()

    def _sums(
        self, reports: Sequence[tuple[Batch, LossReport]], flags: Sequence[float]
    ) -> tuple[dict[str, float], tuple[float, ...]]:
        """Loss, terms and frames, and the flags, summed over utterances and ranks."""
        terms = self.objective.terms
        values = torch.zeros(2 + len(terms) + len(flags), dtype=torch.float64, device=self.device)
        for batch, report in reports:
            rows = [report.total, batch.inputs.lengths.sum(), *(report.terms[name].sum() for name in terms)]
            values[: len(rows)] += torch.stack([row.to(torch.float64) for row in rows])
        if flags:
            values[-len(flags) :] = torch.tensor(list(flags), dtype=torch.float64)
        numbers = distributed.all_sum(values).tolist()
        return dict(zip(("loss", "frames", *terms), numbers, strict=False)), tuple(numbers[2 + len(terms) :])

    def _apply(self, step: int, finite: bool) -> float:
        """Clip and update; leave the weights alone where anything is not finite. Gives the norm of the gradient."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.clip_grad_norm_(parameters, self.config.clip))
        if finite and (math.isfinite(norm) or self._scaler_at_work()):
            optim.set_rate(self.optimizer, self.rate(step))
            self.scaler.step(self.optimizer)  # leaves the weights alone where its scale was too large
            self.scaler.update()
        elif self.scaler.is_enabled():
            self.scaler.update(self.scaler.get_scale())  # the batch is to blame, not the scale
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _scaler_at_work(self) -> bool:
        """A gradient that overflows in fp16 is the scaler's everyday business, until its scale is exhausted."""
        return self.scaler.is_enabled() and self.scaler.get_scale() > 1.0

    def _check_gradients(self) -> None:
        """Every trainable parameter takes part in the loss: else it would never learn, and nobody would know."""
        self._unchecked = False
        idle = [name for name, value in self.model.named_parameters() if value.requires_grad and value.grad is None]
        if idle:
            more = f" and {len(idle) - 8} more" if len(idle) > 8 else ""
            raise TrainError(
                f"{len(idle)} trainable parameters got no gradient: {', '.join(idle[:8])}{more}; freeze them in "
                "optim.groups, remove their module, or give the loss that reads them a weight"
            )

    def _seed(self, step: int) -> None:
        text = f"{self.seed}/{step}/{distributed.rank()}"
        torch.manual_seed(int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"))
        random.seed(f"{self.seed}/{step}")


def _first_utterance(batch: Batch) -> Batch:
    """A batch of one, for ranks that a step has no utterance for: its loss is multiplied by 0."""
    return replace(
        batch,
        ids=batch.ids[:1],
        inputs=Padded(batch.inputs.data[:1], batch.inputs.lengths[:1]),
        targets=Padded(batch.targets.data[:1], batch.targets.lengths[:1]),
        labels={name: value[:1] for name, value in batch.labels.items()},
        texts=batch.texts[:1],
    )
