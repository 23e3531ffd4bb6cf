"""Time independence loss (arXiv 2510.10453): which tokens occur, not when.

The equation of the paper was not available. This is aggregation cross entropy (Xie et al., CVPR
2019), an established loss that ignores time. With m frames, n targets, N_k the count of token k
among them, D = max(m, n) and N_blank = D - n:

    p_k = 1/m sum over t of P_t(k)                    the mean posterior                       (1)
    L   = D * ( - sum over k of N_k / D log p_k )                                              (2)

(2) is D times the cross entropy of the two distributions. It grows with the text like the other
sequence losses, so weights are comparable. The order of the targets does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from asrtool.losses.base import LOSSES, Loss, check_sequences
from asrtool.types import Batch, ModelOutput, Padded, sent


@dataclass(frozen=True, kw_only=True)
class TilConfig:
    """Time independence loss on the head `input`."""

    weight: float
    input: str = "aligned"


@LOSSES.register("til", TilConfig)
class TilLoss(Loss):
    """(2), in nats: (B,); 0 and `skipped` for tokens without frames."""

    def __init__(self, config: TilConfig, *, eos: int, blank: int = 0) -> None:
        self.head = config.input
        self.blank = blank

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        logits, lengths = outputs.head(self.head)
        return time_independence_loss(
            logits.float().log_softmax(-1), lengths, *batch.targets, self.blank
        )

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        return (outputs.head(self.head).lengths == 0) & (batch.targets.lengths > 0)


def time_independence_loss(
    log_probs: Tensor, lengths: Tensor, targets: Tensor, target_lengths: Tensor, blank: int = 0
) -> Tensor:
    """log_probs (B, T, V), lengths (B,), targets (B, U), target_lengths (B,) -> loss (B,).

    log_probs are natural logarithms. Any T and U are legal: without targets every frame is scored
    as blank, without frames the loss is 0. The result is float32, or float64 if log_probs are.
    Raises `ValueError` for shapes and lengths that do not fit.
    """
    lengths, targets, target_lengths = (
        sent(part, log_probs.device, non_blocking=True)
        for part in (lengths, targets, target_lengths)
    )
    check_sequences("time independence loss", log_probs, lengths, targets, target_lengths, blank)
    if not log_probs.shape[1]:
        return log_probs.sum((1, 2))  # 0, connected to the graph
    frames, tokens = Padded(log_probs, lengths), Padded(targets, target_lengths)
    # (2) is summed over targets instead of the vocabulary: a token that occurs N_k times has N_k
    # columns of weight 1. So only U + 1 of the V columns are needed. The last one is blank, with
    # weight N_blank; the padding is blank too, with weight 0.
    wanted = F.pad(targets.to(torch.int64).masked_fill(~tokens.mask, blank), (0, 1), value=blank)
    index = wanted[:, None].expand(-1, log_probs.shape[1], -1)
    posteriors = log_probs.gather(2, index)  # (B, T, U + 1) log P_t(y_u)
    posteriors = posteriors if posteriors.dtype == torch.float64 else posteriors.float()
    # Frames in the padding add exp(-inf) = 0 to the mean. An utterance without frames gets zeros
    # instead: the gradient of logsumexp over nothing but -inf would be NaN.
    posteriors = posteriors.masked_fill(~frames.mask[:, :, None], -torch.inf).masked_fill(
        (lengths == 0)[:, None, None], 0.0
    )
    mean = posteriors.logsumexp(1) - lengths.clamp(min=1).log()[:, None]  # (1): log p (B, U + 1)
    blanks = (lengths - target_lengths).clamp(min=0)[:, None]  # N_blank = D - n
    counts = (
        torch.cat([tokens.mask, blanks], 1).to(mean.dtype).masked_fill((lengths == 0)[:, None], 0.0)
    )
    # masked first, because 0 * inf would be NaN
    return -(mean.masked_fill(counts == 0, 0.0) * counts).sum(1)
