"""Focal CTC (Feng et al. 2019; focal loss: arXiv 1708.02002): easy utterances count less.

    F = alpha (1 - p) ** gamma L,   L = -log p(y | x) by CTC

p is the probability of the transcript (`sentence`), or its geometric mean over tokens, exp(-L / U)
(`length`). The probability of a sentence stays near 0 for most of training, and there F is just
alpha L, so `length` is the default. The Echotune paper (arXiv 2309.07765) adds F to class-weighted
CTC: lambda L_W + (1 - lambda) F. Give the two losses these weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, expm1

from asrtool.losses.base import LOSSES, Loss
from asrtool.losses.ctc import ctc, frames_needed
from asrtool.types import Batch, ModelOutput

_LEAST = 1e-12  # floor of 1 - p: for gamma < 1, its power has no finite derivative at 0


@dataclass(frozen=True, kw_only=True)
class FocalCtcConfig:
    """Focal CTC on the head `input`."""

    weight: float
    input: str = "ctc"
    alpha: float = 0.25  # alpha and gamma: the values of arXiv 1708.02002
    gamma: float = 2.0
    probability: Literal["length", "sentence"] = "length"

    def __post_init__(self) -> None:
        if self.alpha <= 0 or self.gamma < 0:
            raise ValueError(
                f"alpha must be above 0 and gamma at least 0, got {self.alpha} and {self.gamma}"
            )


@LOSSES.register("focal_ctc", FocalCtcConfig)
class FocalCtcLoss(Loss):
    """Focal loss of the CTC loss of an utterance, in nats: (B,)."""

    def __init__(self, config: FocalCtcConfig, *, eos: int, blank: int = 0) -> None:
        self.head = config.input
        self.config = config
        self.blank = blank

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        logits, lengths = outputs.head(self.head)
        loss = ctc(logits.float().log_softmax(-1), lengths, batch.targets, self.blank)
        tokens = batch.targets.lengths if self.config.probability == "length" else None
        return focal(loss, tokens, self.config.alpha, self.config.gamma).masked_fill(
            self.skipped(outputs, batch), 0.0
        )

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        return frames_needed(batch.targets) > outputs.head(self.head).lengths


def focal(loss: Tensor, tokens: Tensor | None, alpha: float, gamma: float) -> Tensor:
    """CTC losses (B,), numbers of tokens (B,) or None (p of the sentence) -> focal losses (B,)."""
    exponent = loss if tokens is None else loss / tokens.clamp(min=1)
    # 1 - exp(-x) by expm1: the difference would cancel where the probability is near 1
    return alpha * (-expm1(-exponent)).clamp(min=_LEAST) ** gamma * loss
