"""Accent of each frame (Qifusion-Net, arXiv 2407.03026), for utterances with a known accent.

    bce            L = mean_t sum_a [ -y_a log(q_{t,a} + e) - (1 - y_a) log(1 - q_{t,a} + e) ]
    cross_entropy  L = mean_t [ -log q_{t,y} ]

where q_t = softmax(z_t), y is the one-hot accent of the utterance, the same for every frame, and
e = 1e-6.

`bce` is what the authors' release computes; summaries of the paper speak of cross entropy. L is the
mean over frames, not the sum, because an utterance has one accent, however long it is. An utterance
without a label (-1) or without frames gets 0, so sets with and without labels can be mixed. The
predicted accent of an utterance is the argmax of the mean of q over its frames.

With `class_weights: inverse_frequency`, L is multiplied by the weight of the utterance's accent
(asrtool/losses/class_weights.py), above 1 for rare ones and below 1 for frequent ones. Without
weights, a model may predict the largest class everywhere. The release has no weights, and neither
has the default. With `class_power: 1` every accent has the same share of the loss; but the
gradients of a class of 1 % then come from a few speakers, each counted many times. 0.5 is a
compromise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from asrtool.losses.base import LOSSES, Loss
from asrtool.losses.class_weights import check_weights, label_weights
from asrtool.registry import bounded
from asrtool.types import Batch, ModelOutput, Padded, on_host, sent

EPSILON = 1e-6  # e


@dataclass(frozen=True, kw_only=True)
class AccentLossConfig:
    """Accent of every frame of the head `input`, against the label of the utterance."""

    weight: float
    input: str = "accent"
    label: str = "accent"  # read from utt2<label> of the data directory; subdialect for KeSpeech
    form: Literal["bce", "cross_entropy"] = "bce"
    # weights of accents by the number of their training utterances
    class_weights: Literal["none", "inverse_frequency"] = "none"
    class_power: float = 0.5  # 0: equal weights, 1: every accent has the same share of the loss
    # the smallest and the largest weight
    class_limits: tuple[float, float] = bounded((0.2, 5.0), ordered=True)

    def __post_init__(self) -> None:
        check_weights(self.class_power, self.class_limits)


@LOSSES.register("accent", AccentLossConfig)
class AccentLoss(Loss):
    """Mean over the frames of an utterance, in nats: (B,).

    Monitors: `accuracy` is 1 if the accent of the utterance is recognised, 0 if it is not or has no
    label.
    """

    monitors = ("accuracy",)

    def __init__(self, config: AccentLossConfig, *, eos: int) -> None:
        self.head = config.input
        self.label = config.label
        self.form = config.form
        self.config = config
        self.weights: Tensor | None = None  # (A,) of the accents

    def count_labels(self, counts: Mapping[str, Sequence[int]]) -> None:
        if self.config.class_weights != "none":
            numbers = counts.get(self.label, ())
            self.weights = label_weights(
                numbers, self.config.class_power, *self.config.class_limits
            )

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        logits = outputs.head(self.head)  # (B, S, A)
        truth = self._truth(batch, logits)
        known = (truth >= 0) & (logits.lengths > 0)
        mask = logits.mask & known[:, None]
        # Padding and utterances without a label get logits of 0, so that everything is finite: they
        # are masked below, and 0 * NaN would not be 0.
        log_probs = logits.data.float().masked_fill(~mask[:, :, None], 0.0).log_softmax(-1)
        index = truth.clamp(min=0)[:, None, None].expand(-1, log_probs.shape[1], 1)
        if self.form == "cross_entropy":
            frames = -log_probs.gather(2, index)[:, :, 0]
        else:
            probs = log_probs.exp()
            # each class is a yes-or-no question of its own: q for the accent, 1 - q for the others
            right = torch.zeros_like(probs, dtype=torch.bool).scatter(2, index, True)
            frames = -(torch.where(right, probs, 1 - probs) + EPSILON).clamp(max=1.0).log().sum(2)
        return self._weigh((frames * mask).sum(1) / logits.lengths.clamp(min=1), truth)

    def _weigh(self, loss: Tensor, truth: Tensor) -> Tensor:
        """loss (B,) times the weights of the accents `truth` (B,)."""
        if self.config.class_weights == "none":
            return loss
        if self.weights is None:
            raise ValueError(
                "loss accent: class_weights need the counts of the accents: call `count_labels` "
                "first"
            )
        if not len(self.weights):  # no training utterance has the label
            return loss
        # a class beyond those of the training set has no utterance, so its weight does not matter
        self.weights = self.weights.to(loss, non_blocking=True)
        return loss * self.weights[truth.clamp(min=0, max=len(self.weights) - 1)]

    @torch.no_grad()
    def monitor(self, outputs: ModelOutput, batch: Batch) -> Mapping[str, Tensor]:
        logits = outputs.head(self.head)
        return {
            "accuracy": (mean_posteriors(logits).argmax(1) == self._truth(batch, logits)).float()
        }

    def _truth(self, batch: Batch, logits: Padded) -> Tensor:
        """(B,) class indices, -1 if unknown."""
        if self.label not in batch.labels:
            return logits.lengths.new_full((len(batch),), -1)
        truth = sent(batch.labels[self.label], logits.data.device, non_blocking=True)
        known, classes = on_host(truth), logits.data.shape[-1]
        if known is not None and len(known) and int(known.max()) >= classes:
            raise ValueError(
                f"the label '{self.label}' has at least {int(known.max()) + 1} values, but the "
                f"model has {classes} classes; set model.encoder.accent.classes, or the number "
                "of experts"
            )
        return truth


def mean_posteriors(logits: Padded) -> Tensor:
    """Frame logits (B, S, A) -> mean probabilities (B, A) float32; 0 for an empty utterance."""
    probs = logits.data.float().softmax(-1).masked_fill(~logits.mask[:, :, None], 0.0)
    return probs.sum(1) / logits.lengths[:, None].clamp(min=1)
