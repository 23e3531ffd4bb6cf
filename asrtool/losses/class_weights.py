"""Class weights by frequency: rare tokens count more in CTC, rare accents in the accent loss.

    w_c = (N / (V n_c)) ** power, limited to [low, high]

for a token c with n_c of the N tokens of the training text, which has V different tokens. A token
of average frequency has weight 1, and so has the blank. The Echotune paper (arXiv 2309.07765) has a
class-weighted CTC, but does not say how the weights are computed or what they apply to. A power of
the inverse frequency is the common choice.

Labels of utterances (`label_weights`): w_a = C n_a ** -power, where C makes the mean weight of the
training utterances 1, so that weighting does not shift the balance between this loss and others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asrtool.types import Padded


def check_weights(power: float, limits: tuple[float, float]) -> None:
    """Raise `ValueError` for settings of class weights outside their range."""
    if not 0 < limits[0] <= 1 <= limits[1]:
        raise ValueError(
            "class_limits must be [lowest, highest] with lowest at most 1 and highest at least 1, "
            f"got {list(limits)}"
        )
    if power < 0:
        raise ValueError(f"class_power must be at least 0, got {power}")


def inverse_frequency(
    counts: Sequence[int] | None, power: float, low: float, high: float, blank: int = 0
) -> Tensor:
    """counts (V,) -> weights (V,) float32; a token that never occurs has the largest weight."""
    if counts is None:
        raise ValueError(
            "class_weights: inverse_frequency needs the token counts, which the vocabulary folder "
            "lacks; make it again (stage 2)"
        )
    numbers = torch.tensor(counts, dtype=torch.float64)
    numbers[blank] = 0
    if not numbers.sum() > 0:
        raise ValueError("class_weights: inverse_frequency: no token occurs in the training text")
    # N / V; a count of 0 gives an infinite weight, which the limits clip
    average = numbers.sum() / (numbers > 0).sum()
    weights = ((average / numbers) ** power).clamp(low, high)
    weights[blank] = 1.0
    return weights.float()


def label_weights(counts: Sequence[int], power: float, low: float, high: float) -> Tensor:
    """counts (A,) -> weights (A,) float32 of the values of a label, limited to [low, high].

    A value that never occurs has the largest weight. Empty if none occurs.
    """
    numbers = torch.tensor(counts, dtype=torch.float64)
    present = numbers > 0
    if not present.any():
        return torch.empty(0)
    inverse = numbers.where(present, torch.ones(())) ** -power
    scale = numbers.sum() / (numbers * inverse).sum()
    return (scale * inverse).masked_fill(~present, high).clamp(low, high).float()


def utterance_weights(weights: Tensor, targets: Padded) -> Tensor:
    """weights (V,) -> (B,): the mean weight of an utterance's tokens; 1 if it has none."""
    tokens = weights[targets.data.clamp(min=0)] * targets.mask
    mean = tokens.sum(1) / targets.lengths.clamp(min=1)
    return torch.where(targets.lengths > 0, mean, 1.0)


def reweighted(loss: Tensor, log_probs: Tensor, valid: Tensor, weights: Tensor) -> Tensor:
    """CTC `loss` (B,) with the gradient p - g_W of cross entropy with reweighted posteriors g_W.

    log_probs (B, S, V) must be a log-softmax; valid (B, S), weights (V,). The value stays that of
    `loss` (Li et al., arXiv 1904.10619).
    """
    if not log_probs.requires_grad:
        return loss
    # torch's gradient of CTC is p - g, that is with respect to the logits, although its arguments
    # are log-probabilities. So g, the posterior of token c at frame t over all paths, needs no
    # forward-backward pass of our own.
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs, retain_graph=True)
    posterior = (log_probs.detach().exp() - gradient).clamp(min=0) * weights
    # g_W (B, S, V): w_c g normalised over tokens. Frames with no posterior (padding, utterances
    # that CTC cannot align) stay 0.
    target = posterior / posterior.sum(-1, keepdim=True).clamp(
        min=torch.finfo(posterior.dtype).tiny
    )
    # cross entropy with fixed targets g_W, whose gradient for the logits is p - g_W
    entropy = -(target * log_probs).sum(-1).masked_fill(~valid, 0.0).sum(1)
    # straight-through: the value of `loss`, the gradient of `entropy`
    return loss.detach() + entropy - entropy.detach()
