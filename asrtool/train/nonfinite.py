"""What is known about a batch whose loss or gradient was not finite: the lines of
`bad_batches.jsonl`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from asrtool import distributed
from asrtool.train import parallel
from asrtool.types import Batch, LossReport


def describe(
    model: nn.Module,
    autocast: Callable[[], AbstractContextManager],
    batch: Batch,
    report: LossReport,
) -> dict[str, object]:
    """Ids, each loss term per utterance, the utterances to blame, and the first module whose output
    was not finite.
    """
    rows = batch.inputs.data.flatten(1).isfinite().all(1)
    guilty = {name for name, fine in zip(batch.ids, rows.tolist(), strict=True) if not fine}
    for values in report.terms.values():
        guilty |= {
            name
            for name, fine in zip(batch.ids, values.isfinite().tolist(), strict=True)
            if not fine
        }
    return {
        "rank": distributed.rank(),
        "ids": list(batch.ids),
        "not_finite": sorted(guilty),
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
    """Name of the first module, in the order of the forward pass, that gives something not finite;
    None: all are finite."""
    found: list[str] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            if not found and not all(bool(value.isfinite().all()) for value in _tensors(output)):
                found.append(name or "the model's output")

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad(), autocast():
            model(batch)
    finally:
        for handle in handles:
            handle.remove()
        parallel.settle(model)
    return found[0] if found else None


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
    """JSON has no NaN and no infinity."""
    return value if abs(value) < float("inf") else str(value)
