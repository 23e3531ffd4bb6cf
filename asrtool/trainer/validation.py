"""The metrics of one validation: `valid/loss`, `valid/<loss term>` and `valid/<error rate>`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

import torch
from torch import nn

from asrtool import distributed
from asrtool.errors import UserError
from asrtool.trainer import parallel
from asrtool.trainer.step import Stepper, numbers
from asrtool.types import Batch, ModelOutput

DENSE_BATCHES = 64  # maximum number of batches checked before the first step
ENDED, BATCH, STOPPED = 0, 1, 2  # what a rank has in lockstep


class Rates(Protocol):
    """Metrics that are ratios of sums, such as error rates: name -> (errors, reference length).

    A metric that is another function of both sums, and no percentage, defines it as `value`.
    """

    names: tuple[str, ...]

    def __call__(
        self, model: nn.Module, outputs: ModelOutput, batch: Batch
    ) -> Mapping[str, tuple[float, int]]: ...


def is_rate(name: str, rates: Rates | None) -> bool:
    """Whether a metric is an error rate, which is printed as a percentage."""
    return (
        rates is not None
        and not hasattr(rates, "value")
        and name.removeprefix("valid/") in rates.names
    )


def names(terms: Iterable[str], rates: Rates | None) -> list[str]:
    """The names of all metrics of `measure`."""
    return [f"valid/{name}" for name in ("loss", *terms, *(rates.names if rates else ()))]


def measure(
    stepper: Stepper, batches: Iterable[Batch], rates: Rates | None, stopped: Callable[[], bool]
) -> tuple[dict[str, float], set[str]] | None:
    """Metrics over the batches of all ranks, and ids of this rank's utterances without a finite
    loss. None if any rank was `stopped`.
    """
    terms = stepper.objective.validated
    parts = [
        f"{name} {part}"
        for name in (rates.names if rates else ())
        for part in ("errors", "reference")
    ]
    # a fixed order of names, so that one vector can be summed over ranks
    sums = dict.fromkeys(("stopped", "utterances", "loss", *terms, *parts), 0.0)
    skipped: set[str] = set()
    for batch, counts in _turns(stepper, batches, stopped):
        if batch is None:
            sums["stopped"] = 1.0
            break
        values, without = measure_batch(stepper, batch, rates)
        if not counts:
            continue
        skipped.update(without)
        for name, value in values.items():
            sums[name] += value
    total = distributed.all_sum(
        torch.tensor(list(sums.values()), dtype=torch.float64, device=stepper.device)
    )
    sums = dict(zip(sums, total.tolist(), strict=True))
    if sums["stopped"]:
        return None
    if sums["utterances"] == 0:
        raise UserError("the validation set is empty")
    metrics = {f"valid/{name}": sums[name] / sums["utterances"] for name in ("loss", *terms)}
    for name in rates.names if rates else ():
        both = sums[f"{name} errors"], max(1.0, sums[f"{name} reference"])
        metrics[f"valid/{name}"] = (
            rates.value(*both) if hasattr(rates, "value") else both[0] / both[1]
        )
    return metrics, skipped


def observed(model: nn.Module) -> dict[str, dict[str, float]]:
    """Module name -> statistics (its `observed`) since the last call, on this rank."""
    reported = {
        name: module.observed()
        for name, module in model.named_modules()
        if hasattr(module, "observed")
    }
    return {name: values for name, values in reported.items() if values is not None}


def rehearse(stepper: Stepper, batches: Iterable[Batch], rates: Rates | None) -> None:
    """Measure the first batch, to check before training that validation works."""
    for batch, _ in _turns(stepper, itertools.islice(batches, 1), lambda: False):
        measure_batch(stepper, batch, rates)


def unscored(stepper: Stepper, batches: Iterable[Batch]) -> set[str]:
    """Utterances without a finite loss, searched in batches with the most text per second first.

    The search ends at the first batch without any. All ranks see the same batches.
    """
    ids: set[str] = set()
    for batch in itertools.islice(batches, DENSE_BATCHES):
        _, skipped = measure_batch(stepper, batch, None)
        if not skipped:
            break
        ids.update(skipped)
    return ids


def _turns(
    stepper: Stepper, batches: Iterable[Batch], stopped: Callable[[], bool]
) -> Iterator[tuple[Batch | None, bool]]:
    """Each batch and whether it counts; ends with (None, False) if a rank was stopped.

    In lockstep, a stop on any rank stops all, and a rank without further batches repeats one
    utterance that does not count.
    """
    if not stepper.ranks.lockstep:
        for batch in batches:
            yield (None, False) if stopped() else (batch, True)
        return
    mine = iter(batches)
    while True:
        batch = next(mine, None)
        # the maximum over ranks decides: any stop outweighs any batch, any batch outweighs the end
        status = distributed.largest(
            STOPPED if stopped() else BATCH if batch is not None else ENDED
        )
        if status != BATCH:
            if status == STOPPED:
                yield None, False
            return
        yield (stepper.spare if batch is None else batch), batch is not None


# no_grad, not inference_mode: the backward pass of the next step may need a tensor that a module
# caches here
@torch.no_grad()
def measure_batch(
    stepper: Stepper, batch: Batch, rates: Rates | None
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Sums over one batch in evaluation mode, and ids without a finite loss."""
    batch = batch.to(stepper.device, non_blocking=True)
    stepper.model.eval()
    try:
        outputs, report = stepper.evaluate(stepper.model, batch)
        with stepper.autocast():
            counts = rates(stepper.model, outputs, batch) if rates else {}
    finally:
        stepper.model.train()
        parallel.settle(stepper.model)
    names = ("loss", *report.terms)
    values = [report.total, *(term.sum() for term in report.terms.values())]
    parts = [torch.stack([value.to(torch.float64) for value in values]), report.skipped.double()]
    read = numbers(torch.cat(parts))
    sums = {"utterances": len(batch), **dict(zip(names, read, strict=False))}
    for name, (errors, reference) in counts.items():
        sums.update({f"{name} errors": errors, f"{name} reference": reference})
    lost = zip(batch.ids, read[len(names) :], strict=True)
    return sums, tuple(name for name, without in lost if without)
