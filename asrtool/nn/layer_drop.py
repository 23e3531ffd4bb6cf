"""Layer drop (arXiv 1909.11556): each training step skips some layers."""

from __future__ import annotations

import random

from torch import Tensor, nn


def drops(probability: float) -> bool:
    """Whether to skip a layer; drawn from Python's `random`, which is seeded alike on all ranks."""
    return probability > 0 and random.random() < probability


def without(layer: nn.Module, x: Tensor) -> Tensor:
    """x, with `layer` skipped.

    The layer's gradients are 0 and not None: DDP waits for every parameter, and the optimizer
    treats the layer as in any other step.
    """
    return x + 0 * sum(parameter.sum() for parameter in layer.parameters())
