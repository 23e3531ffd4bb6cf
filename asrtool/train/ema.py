"""Exponential moving average of the weights: what is validated, saved and decoded with, where
`trainer.ema` is set.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from asrtool.train import parallel


class Ema:
    """shadow <- d * shadow + (1 - d) * weights after every update, d = min(decay, (1 + n) / (10 +
    n)) for update n.

    The lower d at first lets the average forget the random initialisation.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        held = getattr(model, "held", frozenset())  # what is never trained needs no average
        self._parameters = {
            name: value for name, value in model.named_parameters() if name not in held
        }
        self._shadow = {
            name: parameter.detach().clone() for name, parameter in self._parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in self._parameters.items():
            self._shadow[name].lerp_(parameter, 1.0 - decay)

    @contextmanager
    def averaged(self) -> Iterator[dict[str, Tensor]]:
        """Inside, the model holds the averages; gives the training weights by name, which return
        afterwards.
        """
        self._swap()
        try:
            yield self._shadow
        finally:
            self._swap()

    def restore(self, weights: dict[str, Tensor]) -> None:
        """Take what the model holds as the averages, and put `weights` (by name) into the model."""
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                self._shadow[name].copy_(parameter)
                parallel.fill(parameter, weights[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self._parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self._shadow[name])
            self._shadow[name].copy_(held)
