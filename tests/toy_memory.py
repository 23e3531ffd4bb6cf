"""A toy model that runs out of memory above a number of rows, and what ranks do with it; a module
of its own, so that it can be spawned.
"""

from __future__ import annotations

import weakref
from pathlib import Path

import torch
from torch import Tensor

from asrtool import distributed
from asrtool.trainer.parallel import Replicas
from asrtool.types import Batch, ModelOutput
from tests.toy_ranks import join
from tests.toy_training import (
    ToyLinear,
    ToyModel,
    ToyModules,
    ToySteps,
    toy_trainer,
    weights_of,
)


class Limit(torch.autograd.Function):
    """The identity, whose backward pass runs out of memory."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class Hungry(ToyModel):
    """Runs out of memory with more than `most` rows: in the forward pass after the encoder, or in
    the backward pass when the head has its gradient already.
    """

    def __init__(self, most: int, where: str = "forward", dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.most, self.where = most, where
        self.rows: list[int] = []  # of every pass in training
        self.alive: list[weakref.ref] = []  # frames of the passes that failed
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, batch: Batch) -> ModelOutput:
        if not self.training or not torch.is_grad_enabled():
            return super().forward(batch)
        # no pass starts while the memory of a failed one is held
        assert not any(frames() is not None for frames in self.alive)
        self.passes += 1
        self.rows.append(len(batch))
        handle = self.encoder.register_forward_hook(self._eat)
        try:
            return super().forward(batch)
        finally:
            handle.remove()

    def _eat(self, module: object, inputs: object, output: Tensor) -> Tensor | None:
        if self.rows[-1] <= self.most:
            return None
        self.alive.append(weakref.ref(output))
        if self.where == "backward":
            return Limit.apply(output)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def train(rank: int, world: int, port: int, folder: Path, most: list[int], **settings) -> None:
    """A run of 3 epochs on ranks of which each takes at most `most[rank]` rows at once."""
    join(rank, world, port)
    with distributed.process_group():
        model = Hungry(most[rank])
        trainer = toy_trainer(
            folder / "run", ToySteps(rank=rank, world=world), model=model, ema=0.9, **settings
        )
        trainer.run()
        shapes = trainer.stepper.bound.shapes
    found = {"weights": weights_of(trainer), "rows": model.rows, "shapes": list(map(list, shapes))}
    torch.save(found, folder / f"{rank}.pt")


def train_overlapping(rank: int, world: int, port: int, folder: Path, most: list[int]) -> None:
    """The same without repeating."""
    train(rank, world, port, folder, most, out_of_memory="stop")


def average(rank: int, world: int, port: int, folder: Path) -> None:
    """Gradients that differ by rank: of both ranks, of one, of none."""
    join(rank, world, port)
    with distributed.process_group():
        model = ToyModules({name: ToyLinear(2, 1, bias=False) for name in ("both", "one", "none")})
        model["both"].weight.grad = torch.full((1, 2), 1.0 + rank)
        if rank == 1:
            model["one"].weight.grad = torch.full((1, 2), 6.0)
        model.register_buffer("count", torch.tensor(10 + rank))
        Replicas().reduce(model)
    found = {name: value.grad for name, value in model.named_parameters()}
    torch.save({**found, "count": model.count}, folder / f"{rank}.pt")
