"""The metrics of one validation: `valid/loss`, `valid/<loss term>` and `valid/<error rate>`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import nn

from asrtool import distributed
from asrtool.train.step import Stepper, TrainError
from asrtool.types import Batch, ModelOutput


class Rates(Protocol):
    """Error rates: metric name -> (errors, length of the reference) of a batch."""

    names: tuple[str, ...]

    def __call__(self, model: nn.Module, outputs: ModelOutput, batch: Batch) -> Mapping[str, tuple[int, int]]: ...


def names(terms: Iterable[str], rates: Rates | None) -> list[str]:
    """Every metric that `measure` gives."""
    return [f"valid/{name}" for name in ("loss", *terms, *(rates.names if rates else ()))]


def measure(
    stepper: Stepper, batches: Iterable[Batch], rates: Rates | None, stopped: Callable[[], bool]
) -> tuple[dict[str, float], set[str]] | None:
    """Metrics over all ranks' batches, and this rank's utterances without a finite loss; None when any rank was
    `stopped`."""
    terms = stepper.objective.terms
    parts = [f"{name} {part}" for name in (rates.names if rates else ()) for part in ("errors", "reference")]
    sums = dict.fromkeys(("stopped", "utterances", "loss", *terms, *parts), 0.0)
    skipped: set[str] = set()
    for batch in batches:
        if stopped():
            sums["stopped"] = 1.0
            break
        values, without = measure_batch(stepper, batch, rates)
        skipped.update(without)
        for name, value in values.items():
            sums[name] += value
    total = distributed.all_sum(torch.tensor(list(sums.values()), dtype=torch.float64, device=stepper.device))
    sums = dict(zip(sums, total.tolist(), strict=True))
    if sums["stopped"]:
        return None
    if sums["utterances"] == 0:
        raise TrainError("the validation set is empty")
    metrics = {f"valid/{name}": sums[name] / sums["utterances"] for name in ("loss", *terms)}
    for name in rates.names if rates else ():
        metrics[f"valid/{name}"] = sums[f"{name} errors"] / max(1.0, sums[f"{name} reference"])
    return metrics, skipped


# no_grad, not inference_mode: a tensor that a module caches here may be needed by the backward pass of the next step
@torch.no_grad()
def measure_batch(stepper: Stepper, batch: Batch, rates: Rates | None) -> tuple[dict[str, float], tuple[str, ...]]:
    """Sums over one batch, without dropout; and the ids without a finite loss."""
    batch = batch.to(stepper.device, non_blocking=True)
    stepper.model.eval()
    try:
        outputs, report = stepper.evaluate(stepper.model, batch)
        with stepper.autocast():
            counts = rates(stepper.model, outputs, batch) if rates else {}
    finally:
        stepper.model.train()
    sums = {"utterances": len(batch), "loss": float(report.total)}
    sums.update({name: float(values.sum()) for name, values in report.terms.items()})
    for name, (errors, reference) in counts.items():
        sums.update({f"{name} errors": errors, f"{name} reference": reference})
    return sums, report.skipped
