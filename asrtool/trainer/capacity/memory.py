"""What saves memory in training: micro-batches are cut, layers are computed again.

Micro-batches that do not fit are cut in two, again and again, down to one utterance.

A step that ran out of memory is repeated from its start with the micro-batch cut. So its result is
a function of the weights and of what did not fit so far, and a resumed run, which knows that from
its checkpoint, repeats the same numbers. The gradient is that of the whole micro-batch, a sum over
utterances; only random numbers, such as those of dropout, differ.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from asrtool.errors import UserError
from asrtool.trainer import parallel
from asrtool.types import Batch, Padded

# Errors that are no `torch.OutOfMemoryError`: of a CPU, and of libraries that allocate themselves.
SIGNS = ("can't allocate memory", "out of memory", "_ALLOC_FAILED")


class Shape(NamedTuple):
    """A micro-batch as memory sees it."""

    rows: int
    length: int  # input frames, samples or tokens of a row, padding included

    @classmethod
    def of(cls, batch: Batch) -> Shape:
        return cls(len(batch), batch.inputs.data.shape[1])

    def holds(self, other: Shape) -> bool:
        """Whether a batch of this shape needs at least the memory of the other."""
        return self.rows >= other.rows and self.length >= other.length


@dataclass(frozen=True, kw_only=True)
class Overflow:
    """A micro-batch that did not fit, and was cut."""

    rank: int
    ids: tuple[str, ...]
    shape: Shape


class Bound:
    """The shapes that did not fit so far; none contains another."""

    def __init__(self) -> None:
        self.shapes: tuple[Shape, ...] = ()

    def add(self, shapes: Iterable[Sequence[int]]) -> None:
        """Add shapes (rows, length)."""
        for new in (Shape(*shape) for shape in shapes):
            if not any(new.holds(known) for known in self.shapes):
                kept = (known for known in self.shapes if not known.holds(new))
                self.shapes = tuple(sorted((*kept, new)))

    def cut(self, batches: Iterable[Batch]) -> list[Batch]:
        """The micro-batches, with those that do not fit in parts that may."""
        return [part for batch in batches for part in self._parts(batch)]

    def _parts(self, batch: Batch) -> list[Batch]:
        shape = Shape.of(batch)
        if is_one(batch) or not any(shape.holds(known) for known in self.shapes):
            return [batch]
        middle = (len(batch) // batch.views + 1) // 2 * batch.views
        halves = rows(batch, slice(middle)), rows(batch, slice(middle, None))
        return [part for half in halves for part in self._parts(half)]


def is_one(batch: Batch) -> bool:
    """Whether a batch has one utterance, which cannot be cut."""
    return len(batch) == batch.views


def rows(batch: Batch, chosen: slice) -> Batch:
    """Some rows of a batch, padded as the batch is; all views of an utterance or none."""
    return replace(
        batch,
        ids=batch.ids[chosen],
        inputs=Padded(batch.inputs.data[chosen], batch.inputs.lengths[chosen]),
        targets=Padded(batch.targets.data[chosen], batch.targets.lengths[chosen]),
        labels={name: value[chosen] for name, value in batch.labels.items()},
        texts=batch.texts[chosen],
    )


def ran_out(error: RuntimeError) -> bool:
    """Whether an error means that there is not enough memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(sign in str(error) for sign in SIGNS)


def release() -> None:
    """Return unused memory of the GPU to the driver, so that blocks of other sizes can be made."""
    gc.collect()  # cycles that the failed pass left
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# -- layers that are computed again -------------------------------------------


def recompute(model: nn.Module) -> None:
    """Let each layer of the model's encoder keep only its input in training, and compute what is
    inside again in the backward pass, with the same random numbers (arXiv 1604.06174).

    Raises `UserError` if the encoder has no list of layers.
    """
    layers = list(parallel.units(getattr(model, "encoder", model)))
    if not layers:
        raise UserError(
            "trainer.activation_checkpointing computes layers again, and this encoder has no list "
            "of layers; remove the key"
        )
    for layer in layers:
        layer.forward = functools.partial(_again, layer, layer.forward)


def _again(layer: nn.Module, forward: Callable, *inputs: object, **options: object) -> object:
    if not (layer.training and torch.is_grad_enabled()):
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, **options)
