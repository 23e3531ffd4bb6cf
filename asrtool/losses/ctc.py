"""Connectionist temporal classification (Graves et al. 2006) on any stream of frame logits.

    L = -log sum over paths pi with B(pi) = y of  prod_t p(pi_t | x)

B removes repeats, then blanks. A path exists only where S >= U + (number of equal neighbours in y); an utterance
without one gets 0 and is named by `skipped`: with an infinite loss it would poison the batch, and with a silent zero
nobody would know.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from asrtool.losses.base import LOSSES, Loss
from asrtool.types import Batch, ModelOutput, Padded


@dataclass(frozen=True, kw_only=True)
class CtcConfig:
    """CTC on the stream `input`."""

    weight: float
    input: str = "ctc"


@LOSSES.register("ctc", CtcConfig)
class CtcLoss(Loss):
    """Sum over the frames of an utterance, in nats: (B,)."""

    def __init__(self, config: CtcConfig, *, eos: int, blank: int = 0) -> None:
        self.stream = config.input
        self.blank = blank

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        logits, lengths = outputs.stream(self.stream)
        log_probs = logits.float().log_softmax(-1).transpose(0, 1)  # (S, B, V)
        loss = F.ctc_loss(
            log_probs,
            batch.targets.data,
            lengths,
            batch.targets.lengths,
            self.blank,
            reduction="none",
            zero_infinity=True,
        )
        return loss.masked_fill(self.skipped(outputs, batch), 0.0)

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        return frames_needed(batch.targets) > outputs.stream(self.stream).lengths


def frames_needed(targets: Padded) -> Tensor:
    """(B,) the fewest frames that a CTC path for each target needs: its tokens and a blank between equal neighbours."""
    tokens, lengths = targets
    repeats = (tokens[:, 1:] == tokens[:, :-1]) & targets.mask[:, 1:]
    return lengths + repeats.sum(1).to(torch.int64)
