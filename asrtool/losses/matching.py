"""Matching loss (arXiv 2406.17272): to the LLM, speech should look like the text that it knows.

    P  = cos(E_t, E_a)             products (U, S), with text as query
    A  = softmax(P / t)            attention at temperature t: the row of each token sums to 1
    E' = A E_a                     one row per token (U, D)
    L  = sum_i [ a |E'_i - E_t,i|^2 / |E_t,i|^2 + b (1 - cos(E'_i, E_t,i)) ]

E_t (U, D): the input embeddings of the transcript, without a gradient (with one, both sides would
collapse to a point). E_a (S, D): the rows of the adapter. The loss is for training only and does
not affect recognition.

From the paper's summary: cross attention with text as query yields a sequence as long as the text;
squared and cosine distance have weights a and b; products are taken as they are (`dot`) or divided
by sqrt(D) (`scaled`). It mentions neither a normalisation nor projections.

Our choice: cosines with t = 0.05 (`cosine`). Embeddings of LLMs have small norms (a standard
deviation of 0.017 in 4,096 columns), so their products are near 0 and the other two forms attend to
all rows alike. An adapter that outputs each token's embedding then has the same loss as one that
outputs the mean embedding for all tokens, and the minimum needs rows 30 times as long as any
embedding. With cosines, the first adapter has a loss of 0, at every width and norm of the rows.
`projected` computes the products from learned projections (the heads `text_query` and
`speech_key`). Values stay E_a, because a projected value could match the text while the rows do
not.

A token may attend to any row, so an adapter that says the frequent tokens whatever it hears has a
low loss. `band`, which is ours, leaves token u, counted from 0, only the rows s near its place:

    A_us = 0  where |(s + 1/2) / S - (u + 1/2) / U| > max(band, 1 / S)

Like guided attention (Tachibana et al., arXiv 1710.08969), it takes speech to have an even rate.

Squared distances are `relative` to the embedding, since |E_t,i|^2 differs between LLMs: 1.1 in
Vicuna's 4,096 columns, 677 in the 640 of gemma-3-270m, which scales its embeddings. A row of zeros
costs a + b per token with every LLM. `relative: false` keeps the plain sum over D. The loss is a
sum over tokens, as cross entropy is, so the ratio of the two does not depend on length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from asrtool.losses.base import LOSSES, Loss, check_range
from asrtool.registry import OMIT, bounded
from asrtool.types import Batch, ModelOutput, Padded

Products = Literal["cosine", "scaled", "dot"]
TEMPERATURES = {"cosine": 0.05, "scaled": 1.0, "dot": 1.0}  # defaults
PROJECTIONS = ("text_query", "speech_key")  # heads


@dataclass(frozen=True, kw_only=True)
class MatchingConfig:
    """Distance between the transcript's embeddings and the speech that attends to them."""

    weight: float
    input: str = "speech"  # the adapter's rows
    text: str = "text"  # the transcript's embeddings
    # of text and rows: cosine, or dot product, divided by sqrt(D) if scaled; null: cosine
    products: Products | None = None
    # what products are divided by before the softmax; null: 0.05 of cosines, 1 of others
    temperature: float | None = bounded(None, least=0)
    # how far from its place a token attends, as a share of the utterance; null: everywhere
    band: float | None = bounded(None, least=0)
    # products of learned projections: the heads text_query and speech_key
    projected: bool = False
    mse: float = 1.0  # weight a of the squared distance
    relative: bool = True  # squared distances divided by the square of the token's embedding
    cosine: float = 1.0  # weight b of the cosine distance
    # former key of products: true is scaled, false is dot
    scaled: bool | None = field(default=None, metadata=OMIT)

    def __post_init__(self) -> None:
        check_weights(self.mse, self.cosine)
        take_former(self)
        check_temperature(self.temperature)


@LOSSES.register("matching", MatchingConfig)
class MatchingLoss(Loss):
    """Sum over the tokens of an utterance: (B,)."""

    monitors = ("entropy", "entropy_bound", "monotonic")

    def __init__(self, config: MatchingConfig, *, eos: int) -> None:
        self.config = config
        self.head = config.input

    @classmethod
    def heads_of(cls, config: MatchingConfig) -> tuple[str, ...]:
        return (config.input, *PROJECTIONS) if config.projected else (config.input,)

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        speech, text = speech_and_text(outputs, self.config)
        return self._distance(self.attention(outputs, speech, text), text, speech)

    def _distance(self, weights: Tensor, text: Padded, speech: Padded) -> Tensor:
        config = self.config
        return distance(weights, text, speech, config.mse, config.cosine, config.relative)

    def attention(self, outputs: ModelOutput, speech: Padded, text: Padded) -> Tensor:
        """A (B, U, S), from text and speech or from their projections."""
        config = self.config
        query, key = text, speech
        if config.projected:
            query, key = (floats(outputs.head(name)) for name in PROJECTIONS)
        return attention(query, key, config.products, config.temperature, config.band)

    def example(
        self, frames: int, tokens: int, vocab_size: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        outputs = rows(self.config, frames, tokens, vocab_size, generator)
        if self.config.projected:
            sizes = zip(PROJECTIONS, (tokens, frames), strict=True)
            outputs |= {name: torch.randn(n, 4, generator=generator) for name, n in sizes}
        return outputs

    @torch.no_grad()
    def monitor(self, outputs: ModelOutput, batch: Batch) -> Mapping[str, Tensor]:
        speech, text = speech_and_text(outputs, self.config)
        return statistics(self.attention(outputs, speech, text), text, speech)

    def measured(self, outputs: ModelOutput, batch: Batch) -> tuple[Tensor, Mapping[str, Tensor]]:
        speech, text = speech_and_text(outputs, self.config)
        weights = self.attention(outputs, speech, text)
        return self._distance(weights, text, speech), statistics(weights, text, speech)


@torch.no_grad()
def statistics(weights: Tensor, text: Padded, speech: Padded) -> Mapping[str, Tensor]:
    """Statistics of the attention (B, U, S), each (B,).

    entropy: mean over tokens, in nats; 0 for a single row.
    entropy_bound: log S, the entropy of uniform attention; 0 without text, like entropy.
    monotonic: share of neighbouring tokens in order (`monotonic`); 0.5 is chance.
    """
    entropy = torch.special.entr(weights).sum(2).masked_fill(~text.mask, 0)
    bound = speech.lengths.clamp(min=1).to(entropy.dtype).log()
    return {
        "entropy": entropy.sum(1) / text.lengths.clamp(min=1),
        "entropy_bound": bound.masked_fill(text.lengths == 0, 0),
        "monotonic": monotonic(weights, text.lengths),
    }


def speech_and_text(outputs: ModelOutput, config: object) -> tuple[Padded, Padded]:
    """The adapter's rows and the transcript's embeddings, by the heads that the config names.

    Both are float32; the embeddings have no gradient.
    """
    text = floats(outputs.head(config.text))
    return floats(outputs.head(config.input)), Padded(text.data.detach(), text.lengths)


def floats(part: Padded) -> Padded:
    return Padded(part.data.float(), part.lengths)


def rows(
    config: object, frames: int, tokens: int, dim: int, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Random outputs of the two heads for one utterance: (frames, D) and (tokens, D)."""
    sizes = {config.input: frames, config.text: tokens}
    return {name: torch.randn(size, dim, generator=generator) for name, size in sizes.items()}


def matching_loss(
    text: Tensor,
    text_lengths: Tensor,
    speech: Tensor,
    speech_lengths: Tensor,
    products: Products = "cosine",
    temperature: float | None = None,
    mse: float = 1.0,
    cosine: float = 1.0,
    relative: bool = True,
    band: float | None = None,
) -> Tensor:
    """text (B, U, D), speech (B, S, D), right-padded -> (B,) in the type of `speech`.

    The padding may hold anything. No gradient reaches `text`. An utterance without text has loss 0;
    one without speech is matched with zeros. `temperature`: None is 0.05 for cosines, 1 for others.
    """
    check_weights(mse, cosine)
    known = Padded(text.detach().to(speech.dtype), text_lengths)
    rows = Padded(speech, speech_lengths)
    weights = attention(known, rows, products, temperature, band)
    return distance(weights, known, rows, mse, cosine, relative)


def distance(
    weights: Tensor, text: Padded, speech: Padded, mse: float, cosine: float, relative: bool
) -> Tensor:
    """Attention weights (B, U, S), text (B, U, D), speech (B, S, D) -> loss (B,)."""
    check_shapes(text, speech)
    valid = text.mask
    context = attended(weights, speech)
    known = text.data.masked_fill(~valid[:, :, None], 0)
    # starts as a 0 that is connected to the graph, becomes (B, U) with the first term
    loss = context.new_zeros(()) * context.sum()
    if mse:
        squares = (context - known).square().sum(2)
        size = known.square().sum(2) if relative else squares.new_ones(())
        # the padding has norm 0
        loss = loss + mse * squares / size.where(size > 0, 1)
    if cosine:
        loss = loss + cosine * (1 - cosine_similarity(context, known, dim=2))
    return (loss * valid).sum(1)


def attended(weights: Tensor, speech: Padded) -> Tensor:
    """Attention weights (B, U, S), speech (B, S, D) -> E' (B, U, D), 0 after the text."""
    return weights @ speech.data.masked_fill(~speech.mask[:, :, None], 0)


def attention(
    query: Padded,
    key: Padded,
    products: Products = "cosine",
    temperature: float | None = None,
    band: float | None = None,
) -> Tensor:
    """query (B, U, K), key (B, S, K) -> A (B, U, S): the row of a token sums to 1 over the speech,
    and is 0 in the padding of either, and outside of the band.
    """
    check_shapes(query, key)
    check_temperature(temperature)
    valid, key_mask = query.mask, key.mask
    left = query.data.masked_fill(~valid[:, :, None], 0)
    right = key.data.masked_fill(~key_mask[:, :, None], 0)
    if products == "cosine":
        left, right = normalize(left, dim=2), normalize(right, dim=2)
    scale = left.shape[2] ** -0.5 if products == "scaled" else 1.0
    scores = left @ right.transpose(1, 2) * (scale / (temperature or TEMPERATURES[products]))
    both = valid[:, :, None] & key_mask[:, None, :]
    if band is not None:
        reach = key.lengths.reciprocal().clamp(min=band)[:, None, None]
        both = both & ((places(query)[:, :, None] - places(key)[:, None, :]).abs() <= reach)
    lowest = torch.finfo(scores.dtype).min  # not -inf: a row without speech would be NaN
    return scores.masked_fill(~both, lowest).softmax(2).masked_fill(~both, 0)


def places(part: Padded) -> Tensor:
    """Where each of N rows is in its utterance, 0 to 1: (B, N)."""
    at = torch.arange(part.data.shape[1], device=part.data.device) + 0.5
    return at / part.lengths[:, None]


def monotonic(weights: Tensor, text_lengths: Tensor) -> Tensor:
    """A (B, U, S), text_lengths (B,) -> (B,): the share of neighbouring tokens in order.

    Two tokens are in order if the later token also attends to a later row on average. Texts of one
    token get 0.5.
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


def check_temperature(temperature: float | None) -> None:
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def take_former(config: object) -> None:
    """Translate a config's former key `scaled` to `products`; without either, cosine."""
    if config.scaled is not None and config.products is not None:
        raise ValueError(
            f"scaled is the old name of products, which is given too ({config.products}): remove "
            "scaled"
        )
    former = {None: config.products or "cosine", True: "scaled", False: "dot"}
    object.__setattr__(config, "products", former[config.scaled])
    object.__setattr__(config, "scaled", None)


def check_shapes(text: Padded, speech: Padded) -> None:
    """Raise `ValueError` unless shapes and lengths of text and speech fit."""
    shapes = tuple(text.data.shape), tuple(speech.data.shape)
    if not text.data.dim() == speech.data.dim() == 3 or shapes[0][::2] != shapes[1][::2]:
        raise ValueError(
            f"text (B, U, D) and speech (B, S, D) must have the same B and D, got {shapes[0]} and "
            f"{shapes[1]}"
        )
    for name, (data, lengths) in (("text", text), ("speech", speech)):
        if lengths.shape != data.shape[:1]:
            raise ValueError(
                f"{name}_lengths must have shape ({len(data)},), got {tuple(lengths.shape)}"
            )
        check_range(lengths, data.shape[1], f"{name}_lengths")
