"""Count and report problems in training: steps with a loss or gradient that is not finite
(`bad_batches.jsonl`), utterances without a finite loss, and micro-batches that do not fit into
memory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from asrtool import distributed
from asrtool.errors import UserError
from asrtool.log import JsonLines, first_few, plural, warn_once
from asrtool.trainer import parallel
from asrtool.trainer.capacity.memory import Overflow
from asrtool.trainer.config import TrainState
from asrtool.types import Batch, LossReport

if TYPE_CHECKING:  # step uses this module
    from asrtool.trainer.progress import Progress
    from asrtool.trainer.step import StepBatches, StepResult


class Troubles:
    """Problems of one phase. limit: consecutive non-finite steps that end the run."""

    def __init__(self, phase: str, logs: Path, limit: int) -> None:
        self._phase, self._file, self._limit = phase, logs / "bad_batches.jsonl", limit
        # in this epoch: utterances of all ranks, and those of this rank without a finite loss
        self._seen = self._lost = 0
        self._skipped: set[str] = set()
        self._named: set[str] = set()

    def bad(self, group: StepBatches, result: StepResult, state: TrainState, rate: float) -> None:
        """Report a non-finite step, which was skipped; `UserError` after too many in a row.

        rate: the learning rate.
        """
        if distributed.is_main():
            lines = JsonLines(self._file)
            for entry in result.bad:
                lines.write(phase=self._phase, epoch=group.epoch + 1, step=state.step, **entry)
            lines.close()
        suspects = [name for entry in result.bad for name in entry["not_finite"]]
        # if only the gradient is not finite, any utterance of the step may be at fault
        suspects = suspects or [name for entry in result.bad for name in entry["ids"]]
        warn_once(
            "step %d (learning rate %.3g) is not finite and was skipped; see bad_batches.jsonl: %s",
            state.step,
            rate,
            first_few(suspects),
        )
        if state.bad_row >= self._limit:
            if all(entry["inputs_finite"] for entry in result.bad):
                remedy = (
                    "the inputs are finite, so the weights have grown too large: lower optim.lr, "
                    "warm up longer (optim.schedule), or set trainer.precision: float32"
                )
            else:
                remedy = "inputs are not finite: check the audio or features of these utterances"
            raise UserError(
                f"step {state.step}: {state.bad_row} steps in a row were not finite, at a "
                f"learning rate of {rate:.3g}; {remedy} ({self._file} lists utterances, losses "
                "and the first module with non-finite output)"
            )

    def overflowed(
        self,
        epoch: int,
        step: int,
        overflows: Sequence[Overflow],
        frame_seconds: float | None,
        progress: Progress,
    ) -> None:
        """Report micro-batches that did not fit into memory. frame_seconds: of an input frame;
        None: inputs are tokens.
        """
        unit, scale = ("tokens", 1.0) if frame_seconds is None else ("seconds", frame_seconds)
        for one in overflows:
            length = one.shape.length * scale
            size = one.shape.rows * length
            warn_once(
                "step %d: rank %d ran out of memory with %s of up to %.4g %s (%s), %.4g %s with "
                "padding; the step was repeated with this micro-batch in two parts, and so are "
                "later ones of this size; set data.batch.max_%s_per_device below %.4g, or ask "
                "asrtool fit",
                *(step, one.rank, plural(one.shape.rows, "row"), length, unit),
                *(first_few(one.ids), size, unit, unit, size),
            )
            progress.event(
                "out_of_memory",
                epoch=epoch,
                step=step,
                rank=one.rank,
                ids=list(one.ids),
                padded={unit: round(size, 3)},
            )

    def trained(self, count: int, skipped: Collection[str]) -> None:
        """Count a step. count: utterances of all ranks; skipped: this rank's ids without a finite
        loss.
        """
        self._seen += count
        self._lost += len(skipped)
        self.unscored(skipped)

    def unscored(self, ids: Iterable[str]) -> None:
        """Record utterances of this rank without a finite loss."""
        self._skipped.update(ids)

    def report(self, epoch: int, progress: Progress) -> None:
        """Report each recorded utterance once; a collective. epoch 0: before the first step.

        Raises `UserError` after an epoch in which no utterance had a finite loss.
        """
        gathered = distributed.gather_objects((sorted(self._skipped), self._lost))
        if 0 < self._seen <= sum(lost for _, lost in gathered):
            raise UserError(
                f"epoch {epoch}: none of {self._seen} utterances has a finite loss, so nothing was "
                "learnt: their texts need more frames than they have. Check that texts and audio "
                "match; reduce the downsampling (model.encoder.downsamplers), or use longer tokens "
                "(stage 2)"
            )
        self._seen = self._lost = 0
        fresh = sorted({name for names, _ in gathered for name in names} - self._named)
        self._named.update(fresh)
        self._skipped.clear()
        if not fresh:
            return
        when = f"epoch {epoch}" if epoch else "before the first step"
        text = (
            "%s: %s without a finite loss (fewer frames than the text needs), which counts as 0: %s"
        )
        warn_once(text, when, plural(len(fresh), "utterance"), first_few(fresh))
        progress.event("skipped", epoch=epoch, ids=fresh)


# -- the cause of a non-finite step ----------------------------------------


def describe(
    model: nn.Module,
    autocast: Callable[[], AbstractContextManager],
    batch: Batch,
    report: LossReport,
) -> dict[str, object]:
    """Ids and losses of a batch, utterances with non-finite numbers, the first module with any."""
    rows = batch.inputs.data.flatten(1).isfinite().all(1)
    suspects = {name for name, fine in zip(batch.ids, rows.tolist(), strict=True) if not fine}
    for values in report.terms.values():
        suspects |= {
            name
            for name, fine in zip(batch.ids, values.isfinite().tolist(), strict=True)
            if not fine
        }
    return {
        "rank": distributed.rank(),
        "ids": list(batch.ids),
        "not_finite": sorted(suspects),
        "inputs_finite": bool(rows.all()),
        "terms": {
            name: [_json(value) for value in values.tolist()]
            for name, values in report.terms.items()
        },
        "module": first_module(model, autocast, batch),
    }


def first_module(
    model: nn.Module, autocast: Callable[[], AbstractContextManager], batch: Batch
) -> str | None:
    """The name of the first module, in forward order, with non-finite output; None if there is
    none.
    """
    names: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not names and not all(bool(value.isfinite().all()) for value in _tensors(output)):
                names.append(name or "the model's output")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad(), autocast():
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
        parallel.settle(model)
    return names[0] if names else None


def _tensors(value: object) -> Iterator[Tensor]:
    """Every floating-point tensor inside tuples, lists, mappings and dataclasses."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        yield from (tensor for item in value.values() for tensor in _tensors(item))
    elif isinstance(value, list | tuple):
        yield from (tensor for item in value for tensor in _tensors(item))
    elif dataclasses.is_dataclass(value):
        yield from (
            tensor
            for field in dataclasses.fields(value)
            for tensor in _tensors(getattr(value, field.name))
        )


def _json(value: float) -> float | str:
    """A value for JSON, which has no NaN and no infinity."""
    return value if abs(value) < float("inf") else str(value)
