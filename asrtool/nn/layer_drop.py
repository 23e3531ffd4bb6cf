"""Layer drop (arXiv 1909.11556): a training step leaves layers out."""

from __future__ import annotations

import random

from torch import Tensor, nn


def drops(probability: float) -> bool:
    """Whether to leave out a layer; from Python's `random`, seeded alike on all ranks."""
    return probability > 0 and random.random() < probability


def without(layer: nn.Module, x: Tensor) -> Tensor:
    """x, as `layer` would get it if it were left out.

    Its gradients are 0 and not None: DDP waits for every parameter, and the optimizer treats the
    layer as in any other step.
    """
    return x + 0 * sum(parameter.sum() for parameter in layer.parameters())
