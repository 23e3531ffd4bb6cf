"""Next-token cross entropy with label smoothing (Szegedy et al. 2016), for attention decoders.

    L = - sum_{u=1}^{U+1} [ (1 - e) log p(y_u | y_<u, x)  +  e / V sum_v log p(v | y_<u, x) ]

with y_{U+1} = eos. It is the sum over tokens, not the mean. CTC is a sum over the utterance too, so
the ratio of the two losses does not depend on length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from asrtool.losses.base import LOSSES, Loss
from asrtool.registry import bounded
from asrtool.types import Batch, ModelOutput


@dataclass(frozen=True, kw_only=True)
class CrossEntropyConfig:
    """Next-token cross entropy on the head `input`: row u predicts token u, the last row eos."""

    weight: float
    input: str = "attention"
    smoothing: float = bounded(0.1, least=0, most=1)

    def __post_init__(self) -> None:
        if not 0.0 <= self.smoothing < 1.0:
            raise ValueError(f"smoothing must be at least 0 and below 1, got {self.smoothing}")


@LOSSES.register("cross_entropy", CrossEntropyConfig)
class CrossEntropyLoss(Loss):
    """Sum over the tokens of an utterance and eos, in nats: (B,)."""

    def __init__(self, config: CrossEntropyConfig, *, eos: int) -> None:
        self.head = config.input
        self.smoothing = config.smoothing
        self.eos = eos

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        logits, _ = outputs.head(self.head)  # (B, U + 1, V)
        targets = batch.targets.append(self.eos)
        # the classes last: over another dimension, softmax takes several times as long on a CPU
        loss = F.cross_entropy(
            logits.float().flatten(0, 1),
            targets.data.flatten(),
            label_smoothing=self.smoothing,
            reduction="none",
        ).view_as(targets.data)  # (B, U + 1)
        return (loss * targets.mask).sum(1)

    def example(
        self, frames: int, tokens: int, vocab_size: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        return {self.head: torch.randn(tokens + 1, vocab_size, generator=generator)}
