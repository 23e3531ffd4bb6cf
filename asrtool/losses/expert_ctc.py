"""CTC of accent experts (arXiv 2602.01967), each counted as much as it is used.

    L = sum over k of g_k L_k,   g_k = mean over t of g_{t,k}

L_k is the CTC loss of expert k on the transcript, and g_{t,k} its share in the mixture at frame t
(asrtool/downsamplers/experts.py). An expert learns from the utterances that are routed to it, and
the routing from which expert reads them best: the gradient of g is that of a weighted mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asrtool.losses.accent import mean_posteriors
from asrtool.losses.base import LOSSES, Loss
from asrtool.losses.ctc import ctc, frames_needed
from asrtool.types import Batch, ModelOutput, Padded, both


@dataclass(frozen=True, kw_only=True)
class ExpertCtcConfig:
    """CTC of each expert, weighted by the routing (MoE-CTC, arXiv 2602.01967)."""

    weight: float
    input: str = "expert_ctc"
    routing: str = "accent"  # the head with the logits of the routing


@LOSSES.register("expert_ctc", ExpertCtcConfig)
class ExpertCtcLoss(Loss):
    """Sum over the frames of an utterance, in nats: (B,)."""

    def __init__(self, config: ExpertCtcConfig, *, eos: int, blank: int = 0) -> None:
        self.head = config.input
        self.routing = config.routing
        self.blank = blank

    @classmethod
    def heads_of(cls, config: Any) -> tuple[str, ...]:
        return (config.input, config.routing)

    def example(
        self, frames: int, tokens: int, vocab_size: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        return {
            self.head: torch.randn(frames, 2 * vocab_size, generator=generator),
            self.routing: torch.randn(frames, 2, generator=generator),
        }

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        logits, lengths = outputs.head(self.head)  # (B, S, K * V)
        shares = mean_posteriors(outputs.head(self.routing))  # (B, K)
        experts = shares.shape[1]
        log_probs = logits.float().unflatten(2, (experts, -1)).log_softmax(-1)
        # one CTC over K times as many rows, those of an expert side by side
        rows = log_probs.permute(2, 0, 1, 3).flatten(0, 1)
        lengths, sizes = (
            both(lambda values: values.repeat(experts), values)
            for values in (lengths, batch.targets.lengths)
        )
        targets = Padded(batch.targets.data.repeat(experts, 1), sizes)
        losses = ctc(rows, lengths, targets, self.blank).unflatten(0, (experts, -1))
        return (losses.T * shares).sum(1).masked_fill(self.skipped(outputs, batch), 0.0)

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        return frames_needed(batch.targets) > outputs.head(self.head).lengths
