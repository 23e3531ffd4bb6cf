"""Connectionist temporal classification (Graves et al. 2006) on any head with frame logits.

    L = -log sum over paths pi with B(pi) = y of  prod_t p(pi_t | x)

B merges repeats, then removes blanks. A path exists only if S >= U + (number of equal neighbours in
y). An utterance without one gets 0 and is reported by `skipped`: an infinite loss would spoil the
batch, and a silent zero would go unnoticed.

With class weights w (asrtool/losses/class_weights.py) rare tokens count more, in one of two ways:

    utterance   L_W = L * mean_u w_{y_u}
    gradient    dL_W / dlogits = p - g_W,  g_W(t, c) ~ w_c g(t, c)

where g(t, c) is the posterior of token c at frame t. The second is due to Li et al. (arXiv
1904.10619): cross entropy with the reweighted posteriors as fixed targets. Its value stays L, so
runs with different weights can be compared. With weights of 1, both are plain CTC.

`repeat_penalty` and `longest_run` make it blank-regularized CTC (asrtool/losses/blank_ctc.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from asrtool.losses.base import LOSSES, Loss
from asrtool.losses.blank_ctc import blank_regularized_ctc
from asrtool.losses.class_weights import (
    check_weights,
    inverse_frequency,
    reweighted,
    utterance_weights,
)
from asrtool.registry import bounded
from asrtool.types import Batch, ModelOutput, Padded, on_host


@dataclass(frozen=True, kw_only=True)
class CtcConfig:
    """CTC on the head `input`."""

    weight: float
    input: str = "ctc"
    # weights of tokens by their counts in the training text
    class_weights: Literal["none", "inverse_frequency"] = "none"
    class_weighting: Literal["utterance", "gradient"] = "utterance"  # what the weights apply to
    class_power: float = 0.5  # 0: equal weights, 1: the inverse of the frequency
    # the smallest and the largest weight
    class_limits: tuple[float, float] = bounded((0.2, 5.0), ordered=True)
    # blank-regularized CTC
    repeat_penalty: float = bounded(0.0, least=0)  # nats for each frame that repeats a token
    longest_run: int | None = bounded(None, least=1)  # frames of a token; None: any number

    def __post_init__(self) -> None:
        check_weights(self.class_power, self.class_limits)
        regularized = self.repeat_penalty or self.longest_run is not None
        weighted = self.class_weights != "none" and self.class_weighting == "gradient"
        if regularized and weighted:
            raise ValueError(
                "repeat_penalty and longest_run change the gradient that class_weighting: gradient "
                "takes the posteriors from; use class_weighting: utterance with them"
            )


@LOSSES.register("ctc", CtcConfig)
class CtcLoss(Loss):
    """Sum over the frames of an utterance, in nats: (B,)."""

    def __init__(self, config: CtcConfig, *, eos: int, blank: int = 0) -> None:
        self.head = config.input
        self.blank = blank
        self.config = config
        self.weights: Tensor | None = None  # (V,) of the tokens
        if config.input == "inter_ctc":
            self.monitors = ("key_frames_per_token", "frame_reduction", "overflow")

    def count(self, counts: Sequence[int] | None) -> None:
        if self.config.class_weights != "none":
            limits = self.config.class_limits
            self.weights = inverse_frequency(
                counts, self.config.class_power, *limits, blank=self.blank
            )

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        logits, lengths = outputs.head(self.head)
        log_probs = logits.float().log_softmax(-1)
        if self.config.repeat_penalty or self.config.longest_run is not None:
            loss = blank_regularized_ctc(
                log_probs,
                lengths,
                batch.targets,
                self.blank,
                self.config.repeat_penalty,
                self.config.longest_run,
            ).float()
        else:
            loss = ctc(log_probs, lengths, batch.targets, self.blank)
        if self.config.class_weights != "none":
            if self.weights is None:
                raise ValueError(
                    "loss ctc: class_weights need the counts of the tokens: call `count` first"
                )
            self.weights = self.weights.to(log_probs, non_blocking=True)
            if self.config.class_weighting == "utterance":
                loss = loss * utterance_weights(self.weights, batch.targets)
            else:
                valid = Padded(log_probs, lengths).mask
                loss = reweighted(loss, log_probs, valid, self.weights)
        return loss.masked_fill(self.skipped(outputs, batch), 0.0)

    @torch.no_grad()
    def monitor(self, outputs: ModelOutput, batch: Batch) -> Mapping[str, Tensor]:
        """`key_frames_per_token`, `frame_reduction` and `overflow` of an intermediate head, (B,).

        The first is the number of tokens on its best path, divided by that of the reference; it
        must be near 1 before the head can select frames. The second is the share of dropped frames.
        The third is the number of frames dropped for lack of room (downsamplers/keyframe.py).
        """
        logits, lengths = outputs.head(self.head)
        # (B, S + 1): a leading blank, so that the first frame has a predecessor to compare with
        best = F.pad(logits.argmax(-1), (1, 0), value=self.blank)
        starts = (
            (best[:, 1:] != self.blank)
            & (best[:, 1:] != best[:, :-1])
            & outputs.head(self.head).mask
        )
        frames, overflow = outputs.encoder.frames.lengths, outputs.encoder.taps.get("overflow")
        return {
            "key_frames_per_token": starts.sum(1) / batch.targets.lengths.clamp(min=1),
            "frame_reduction": 1 - frames / lengths.clamp(min=1),
            "overflow": overflow.data.sum(1) if overflow else torch.zeros_like(lengths),
        }

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        return frames_needed(batch.targets) > outputs.head(self.head).lengths


def ctc(log_probs: Tensor, lengths: Tensor, targets: Padded, blank: int) -> Tensor:
    """log_probs (B, S, V), lengths (B,) -> CTC losses (B,) in nats; 0 if no path exists."""
    # torch reads lengths on the host: those of a GPU would be waited for
    known, numbers = on_host(lengths), on_host(targets.lengths)
    if known is None:
        log_probs = ended(log_probs, lengths, blank)
        known = torch.full(lengths.shape, log_probs.shape[1])
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        targets.data,
        known,
        targets.lengths if numbers is None else numbers,
        blank,
        reduction="none",
        zero_infinity=True,
    )


def ended(log_probs: Tensor, lengths: Tensor, blank: int) -> Tensor:
    """log_probs (B, S, V) with a sure blank in every frame after the lengths (B,).

    All S frames then have the CTC loss that the first frames had: a path ends in its last token or
    the blank after it, and from both the sure blanks lead to the end alone.
    """
    sure = torch.full_like(log_probs[0, 0], -torch.inf)
    sure[blank] = 0.0
    return torch.where(Padded(log_probs, lengths).mask[:, :, None], log_probs, sure)


def frames_needed(targets: Padded) -> Tensor:
    """(B,): frames of the shortest CTC path: the tokens, and a blank between equal neighbours."""
    tokens, lengths = targets
    repeats = (tokens[:, 1:] == tokens[:, :-1]) & targets.mask[:, 1:]
    return lengths + repeats.sum(1).to(torch.int64)
