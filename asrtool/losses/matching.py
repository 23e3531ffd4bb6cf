"""Matching loss (arXiv 2406.17272): speech should look to the LLM like the text it knows.

    A  = softmax(E_t E_a^T s)      attention (U, S), text as query;  s = 1 / sqrt(D) (scaled) or 1
    E' = A E_a                     one row per token (U, D)
    L  = sum_i [ a |E'_i - E_t,i|^2 + b (1 - cos(E'_i, E_t,i)) ]

E_t (U, D): the input embeddings of the transcript, without a gradient (with one, both sides would
collapse to a point); E_a (S, D): the rows of the adapter. The loss is for training only and changes
nothing in recognition. The attention has no projections: the summary of the paper that this follows
names none. Squares are summed over D, as embeddings of LLMs have a standard deviation near 0.02,
and their mean square would be negligible beside the cosine. The sum over tokens is that of cross
entropy, so that weights mean the same for every length.
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
    """Distance between embeddings of the transcript and what attention picks from the speech."""

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

    def example(
        self, frames: int, tokens: int, vocab_size: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        return rows(self.config, frames, tokens, vocab_size, generator)

    @torch.no_grad()
    def monitor(self, outputs: ModelOutput, batch: Batch) -> Mapping[str, Tensor]:
        """`entropy` and `monotonic` of the attention, both (B,).

        entropy: mean over tokens, in nats; log S for uniform attention, 0 for a single row.
        monotonic: share of neighbouring tokens in order (`monotonic`); 0.5 is chance.
        """
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
    """The rows of the adapter and the embeddings of the transcript, as the config names them."""
    return outputs.head(config.input), outputs.head(config.text)


def rows(
    config: object, frames: int, tokens: int, dim: int, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Both drawn at random, for one utterance."""
    sizes = {config.input: frames, config.text: tokens}
    return {name: torch.randn(size, dim, generator=generator) for name, size in sizes.items()}


def matching_loss(
    text: Tensor,
    text_lengths: Tensor,
    speech: Tensor,
    speech_lengths: Tensor,
    scaled: bool = True,
    mse: float = 1.0,
    cosine: float = 1.0,
) -> Tensor:
    """text (B, U, D), speech (B, S, D), right-padded -> (B,) in the type of `speech`.

    The padding may hold anything. No gradient reaches `text`. An utterance without text gives 0;
    one without speech is matched with zeros.
    """
    check_weights(mse, cosine)
    context = attended(text, text_lengths, speech, speech_lengths, scaled)
    valid = Padded(text, text_lengths).mask
    text = text.detach().to(speech.dtype).masked_fill(~valid[:, :, None], 0)
    loss = speech.new_zeros(()) * context.sum()  # 0 with a gradient, then terms (B, U)
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
    """A (B, U, S): the row of a token sums to 1 over the speech; 0 in the padding of both."""
    check_shapes(text, text_lengths, speech, speech_lengths)
    valid, heard = Padded(text, text_lengths).mask, Padded(speech, speech_lengths).mask
    query = text.detach().to(speech.dtype).masked_fill(~valid[:, :, None], 0)
    scores = query @ speech.masked_fill(~heard[:, :, None], 0).transpose(1, 2)
    scores = scores * text.shape[2] ** -0.5 if scaled else scores
    both = valid[:, :, None] & heard[:, None, :]
    lowest = torch.finfo(scores.dtype).min  # not -inf: a row without any speech would be NaN
    return scores.masked_fill(~both, lowest).softmax(2).masked_fill(~both, 0)


def monotonic(weights: Tensor, text_lengths: Tensor) -> Tensor:
    """A (B, U, S), text_lengths (B,) -> (B,): the share of neighbouring tokens in order.

    Two tokens are in order if the mean row that the later one attends to is the later one too.
    Texts of one token get 0.5.
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
            f"{tuple(text.shape)} and {tuple(speech.shape)}"
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
