"""Matching loss: what an LLM is told of speech shall look like the text that it knows (arXiv
2406.17272).

    A  = softmax(E_t E_a^T s) over the rows of speech,   s = 1 / sqrt(D) (scaled) or 1
        attention, text as query
    E' = A E_a                                                                               one row
        per token
    L  = sum_i [ a |E'_i - E_t,i|^2 + b (1 - cos(E'_i, E_t,i)) ]

E_t (U, D): the LLM's input embeddings of the transcript, without gradient (with one, both sides
would fall to a point); E_a (S, D): the adapter's rows. Training only; nothing changes when speech
is recognised. The attention has no projections: the summary of the paper that this follows names
none. The squares are summed over D, as embeddings of LLMs have a standard deviation near 0.02 and
their mean square would weigh nothing beside the cosine; the sum over tokens is what cross entropy
does, so that weights mean the same for every length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from asrtool.losses.base import LOSSES, Loss
from asrtool.types import Batch, ModelOutput, Padded


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Distance between the transcript's embeddings and what attention finds for them in the
    speech.
    """

    weight: float
    input: str = "speech"  # the adapter's rows
    text: str = "text"  # the transcript's embeddings
    scaled: bool = True  # products divided by sqrt(D)
    mse: float = 1.0  # weight a of the squared distance
    cosine: float = 1.0  # weight b of the cosine distance

    def __post_init__(self) -> None:
        check_weights(self.mse, self.cosine)


@LOSSES.register("matching", MatchingConfig)
class MatchingLoss(Loss):
    """Sum over the tokens of an utterance: (B,)."""

    monitors = ("entropy", "monotonic")

    def __init__(self, config: MatchingConfig, *, eos: int) -> None:
        self.config = config
        self.head = config.input

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        config = self.config
        speech, text = (
            Padded(part.data.float(), part.lengths) for part in speech_and_text(outputs, config)
        )
        return matching_loss(
            *text, *speech, scaled=config.scaled, mse=config.mse, cosine=config.cosine
        )

    @torch.no_grad()
    def monitor(self, outputs: ModelOutput, batch: Batch) -> Mapping[str, Tensor]:
        """`entropy` (B,): mean over tokens, in nats, of where the attention looks; log S:
        everywhere alike, 0: at one row. `monotonic` (B,): share of neighbouring tokens of which the
        later one looks later, on average; 0.5 is chance, and the value of texts of one token."""
        speech, text = (
            Padded(part.data.float(), part.lengths)
            for part in speech_and_text(outputs, self.config)
        )
        weights = matching_attention(*text, *speech, scaled=self.config.scaled)
        entropy = torch.special.entr(weights).sum(2).masked_fill(~text.mask, 0)
        return {
            "entropy": entropy.sum(1) / text.lengths.clamp(min=1),
            "monotonic": monotonic(weights, text.lengths),
        }


def speech_and_text(outputs: ModelOutput, config: object) -> tuple[Padded, Padded]:
    """The adapter's rows and the transcript's embeddings that a loss's config names."""
    return outputs.head(config.input), outputs.head(config.text)


def matching_loss(
    text: Tensor,
    text_lengths: Tensor,
    speech: Tensor,
    speech_lengths: Tensor,
    scaled: bool = True,
    mse: float = 1.0,
    cosine: float = 1.0,
) -> Tensor:
    """text (B, U, D), speech (B, S, D), right-padded, whatever the padding holds -> (B,), in the
    type of `speech`.

    No gradient reaches `text`. An utterance without text gives 0; one without speech is matched
    with zeros.
    """
    check_weights(mse, cosine)
    context = attended(text, text_lengths, speech, speech_lengths, scaled)
    valid = Padded(text, text_lengths).mask
    text = text.detach().to(speech.dtype).masked_fill(~valid[:, :, None], 0)
    loss = speech.new_zeros(()) * context.sum()
    if mse:
        loss = loss + mse * (context - text).square().sum(2)
    if cosine:
        loss = loss + cosine * (1 - cosine_similarity(context, text, dim=2))
    return (loss * valid).sum(1)


def attended(
    text: Tensor, text_lengths: Tensor, speech: Tensor, speech_lengths: Tensor, scaled: bool = True
) -> Tensor:
    """E' (B, U, D), 0 beyond the text."""
    weights = matching_attention(text, text_lengths, speech, speech_lengths, scaled)
    return weights @ speech.masked_fill(~Padded(speech, speech_lengths).mask[:, :, None], 0)


def matching_attention(
    text: Tensor, text_lengths: Tensor, speech: Tensor, speech_lengths: Tensor, scaled: bool = True
) -> Tensor:
    """A (B, U, S): each token's row sums to 1 over the speech; 0 beyond the text and beyond the
    speech.
    """
    check_shapes(text, text_lengths, speech, speech_lengths)
    valid, heard = Padded(text, text_lengths).mask, Padded(speech, speech_lengths).mask
    query = text.detach().to(speech.dtype).masked_fill(~valid[:, :, None], 0)
    scores = query @ speech.masked_fill(~heard[:, :, None], 0).transpose(1, 2)
    scores = scores * text.shape[2] ** -0.5 if scaled else scores
    both = valid[:, :, None] & heard[:, None, :]
    lowest = torch.finfo(scores.dtype).min  # not -inf: a row without any speech would be NaN
    return scores.masked_fill(~both, lowest).softmax(2).masked_fill(~both, 0)


def monotonic(weights: Tensor, text_lengths: Tensor) -> Tensor:
    """A (B, U, S), (B,) -> (B,): the share of neighbouring tokens whose mean places in the speech
    are in order.
    """
    centres = weights @ torch.arange(weights.shape[2], device=weights.device, dtype=weights.dtype)
    later = (centres[:, 1:] > centres[:, :-1]) & Padded(centres, text_lengths).mask[:, 1:]
    pairs = (text_lengths - 1).clamp(min=0)
    return torch.where(pairs > 0, later.sum(1) / pairs.clamp(min=1), 0.5).to(weights.dtype)


def check_weights(mse: float, cosine: float) -> None:
    if min(mse, cosine) < 0 or not max(mse, cosine) > 0:
        raise ValueError(
            f"mse ({mse}) and cosine ({cosine}) must not be negative, and one must be above 0"
        )


def check_shapes(
    text: Tensor, text_lengths: Tensor, speech: Tensor, speech_lengths: Tensor
) -> None:
    """Raise `ValueError` where the four do not belong together."""
    fits = text.dim() == speech.dim() == 3 and text.shape[::2] == speech.shape[::2]
    if not fits:
        raise ValueError(
            "text (B, U, D) and speech (B, S, D) must have the same B and D, got "
            f"{tuple(text.shape)} and "
            f"{tuple(speech.shape)}"
        )
    for name, data, lengths in (("text", text, text_lengths), ("speech", speech, speech_lengths)):
        if lengths.shape != data.shape[:1]:
            raise ValueError(
                f"{name}_lengths must have shape ({len(data)},), got {tuple(lengths.shape)}"
            )
        if len(lengths) and not 0 <= int(lengths.min()) <= int(lengths.max()) <= data.shape[1]:
            raise ValueError(
                f"{name}_lengths must lie between 0 and {data.shape[1]}, got {lengths.tolist()}"
            )
