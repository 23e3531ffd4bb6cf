"""Weights of tokens by their frequency, for class-weighted CTC: those of a rare letter outweigh
those of a common one.

    w_c = (N / (V n_c)) ** power, limited to [low, high];  n_c how often token c occurs among N, V
        tokens that occur

A token as frequent as the average has weight 1, and so has the blank. The Echotune paper (arXiv
2309.07765) has a class-weighted CTC and says neither how weights are found nor what they weigh;
inverse frequency with a power is the common choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asrtool.types import Padded


def inverse_frequency(
    counts: Sequence[int] | None, power: float, low: float, high: float, blank: int = 0
) -> Tensor:
    """(V,) float32; a token that never occurs has the largest weight."""
    if counts is None:
        raise ValueError(
            "class_weights: inverse_frequency needs the counts of the tokens, which the "
            "vocabulary folder lacks; make "
            "it again (stage 2)"
        )
    numbers = torch.tensor(counts, dtype=torch.float64)
    numbers[blank] = 0
    if not numbers.sum() > 0:
        raise ValueError("class_weights: inverse_frequency: no token occurs in the training text")
    average = numbers.sum() / (numbers > 0).sum()
    weights = ((average / numbers) ** power).clamp(low, high)
    weights[blank] = 1.0
    return weights.float()


def utterance_weights(weights: Tensor, targets: Padded) -> Tensor:
    """(V,) -> (B,): the mean weight of an utterance's tokens; 1 where it has none."""
    tokens = weights[targets.data.clamp(min=0)] * targets.mask
    mean = tokens.sum(1) / targets.lengths.clamp(min=1)
    return torch.where(targets.lengths > 0, mean, 1.0)


def reweighted(loss: Tensor, log_probs: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    """CTC `loss` (B,) of log-softmax log_probs (B, S, V), its gradient towards re-weighted
    posteriors; valid (B, S).

    torch's gradient of CTC is p - g, taken for the logits behind the log-probabilities, so g is at
    hand without another pass over the paths.
    """
    if not log_probs.requires_grad:
        return loss
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs, retain_graph=True)
    posterior = (log_probs.detach().exp() - gradient).clamp(min=0) * weights
    target = posterior / posterior.sum(-1, keepdim=True).clamp(
        min=torch.finfo(posterior.dtype).tiny
    )
    entropy = -(target * log_probs).sum(-1).masked_fill(~valid, 0.0).sum(1)
    return loss.detach() + entropy - entropy.detach()
