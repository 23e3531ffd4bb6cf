"""Consistency of two augmented views of an utterance (CR-CTC, arXiv 2410.05101).

The loader puts two views of every utterance side by side in a batch: the same speed, noise and
gain, but SpecAugment drawn for each. With p_a, p_b (S, V) the distributions of a frame head,

    L_CR = 1/2 sum_t  KL(sg(p_b(t)) || p_a(t)) + KL(sg(p_a(t)) || p_b(t))

where sg() stops the gradient, so that each view follows the other. An utterance has two rows here,
with one of the two divergences each; as every loss is a mean over rows, that of both is L_CR, and
CTC beside it is the mean over both views.

Views are to differ more than one SpecAugment would make them: `time_masks` multiplies the number of
time masks and the share of the utterance under them, by 2.5 in the paper. Masks that a front end
draws in the model are not multiplied. The weight grows linearly from 0 over `warmup`, which is a
choice: published runs of other encoders diverged without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asrtool.losses.base import LOSSES, Loss
from asrtool.registry import bounded
from asrtool.types import Batch, ModelOutput, on_host


@dataclass(frozen=True, kw_only=True)
class ConsistencyConfig:
    """Two views agree on the distributions of the head `input` (CR-CTC, arXiv 2410.05101)."""

    weight: float  # 0.2 in the paper, beside CTC of weight 1
    input: str = "ctc"
    # times as many time masks as data.augment.spec_augment has
    time_masks: float = bounded(2.5, least=1)
    # until the weight is reached: a share of all steps, or steps from 1 on
    warmup: float = bounded(0.1, least=0)


@LOSSES.register("consistency", ConsistencyConfig)
class Consistency(Loss):
    """Sum over the frames of an utterance, in nats: (B,)."""

    views = 2

    def __init__(self, config: ConsistencyConfig, *, eos: int) -> None:
        self.head = config.input
        self.warmup = config.warmup

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        logits, lengths = outputs.head(self.head)
        return consistency(logits, lengths, batch.ids)


def consistency(logits: Tensor, lengths: Tensor, ids: Sequence[str] = ()) -> Tensor:
    """logits (B, S, V) of views, two rows in a row each of an utterance, lengths (B,) -> (B,).

    Each row's divergence from the other view, whose distribution gets no gradient. Raises
    `ValueError` where B is odd, or the views of an utterance have other numbers of frames.
    """
    if len(logits) % 2:
        raise ValueError(f"consistency: {len(logits)} rows are not two views of each utterance")
    known = on_host(lengths)
    if known is not None:
        uneven = (known[::2] != known[1::2]).nonzero().flatten().tolist()
        if uneven:
            name = f" ({ids[2 * uneven[0]]})" if ids else ""
            first, second = known[2 * uneven[0] :][:2].tolist()
            raise ValueError(
                f"consistency: the views of an utterance{name} have {first} and {second} frames; "
                "behind key frames they differ, so `input` must name a head in front of them"
            )
    log_probs = logits.float().log_softmax(-1)
    # rows 2 i and 2 i + 1 change places
    other = log_probs.detach().unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    divergence = (other.exp() * (other - log_probs)).sum(-1)  # (B, S)
    valid = torch.arange(logits.shape[1], device=lengths.device) < lengths[:, None]
    return divergence.masked_fill(~valid, 0.0).sum(1)
