"""Which tokens does an utterance hold? A head that answers, and the loss that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asrtool.heads import HEADS, Head
from asrtool.losses import LOSSES, Loss
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded


@dataclass(frozen=True, kw_only=True)
class BagHeadConfig:
    """Which tokens an utterance holds, from the mean of its frames."""


@HEADS.register("bag", BagHeadConfig)
class BagHead(Head):
    """Logits (B, 1, V): one row for each utterance."""

    output = "utterance"

    def __init__(self, config: BagHeadConfig, *, name: str, model: nn.Module) -> None:
        super().__init__(name)
        self.linear = nn.Linear(model.dim, model.vocab_size)

    def forward(self, encoded: EncoderOutput, batch: Batch) -> Padded:
        frames = encoded.frames
        total = frames.data.masked_fill(~frames.mask[:, :, None], 0).sum(1)
        logits = self.linear(total / frames.lengths.clamp(min=1)[:, None])
        return Padded(logits[:, None], torch.ones_like(frames.lengths))


@dataclass(frozen=True, kw_only=True)
class BagConfig:
    """Binary cross entropy of each token of the vocabulary: is it in the utterance?"""

    weight: float
    input: str = "bag"


@LOSSES.register("bag", BagConfig)
class BagLoss(Loss):
    """Sum over the vocabulary, in nats: (B,)."""

    def __init__(self, config: BagConfig, *, eos: int) -> None:
        self.head = config.input

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        logits = outputs.head(self.head).data[:, 0].float()
        targets = batch.targets
        present = torch.zeros_like(logits).scatter_add(1, targets.data, targets.mask.float())
        loss = F.binary_cross_entropy_with_logits(logits, present.clamp(max=1), reduction="none")
        return loss.sum(1)

    def example(
        self, frames: int, tokens: int, vocab_size: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        """What the contracts try the loss on: one row for each utterance."""
        return {self.head: torch.randn(1, vocab_size, generator=generator)}
