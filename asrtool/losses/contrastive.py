"""A contrastive alternative to the matching loss: speech is closer to its token than to others.

    L = - sum_i log ( sum_{j: y_j = y_i} s_ij / sum_j s_ij ),   s_ij = exp(cos(E'_i, E_t,j) / tau)

E' is the attention output of the matching loss (arXiv 2406.17272, `products` as there). The form
is InfoNCE (van den Oord et al., arXiv 1807.03748) over the tokens of one utterance, so that no loss
depends on the batch. Equal tokens are one class. Compared with the matching loss, it shows whether
the distance itself matters, or only that tokens can be told apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize

from asrtool.losses.base import LOSSES, Loss
from asrtool.losses.matching import (
    Products,
    attended,
    attention,
    check_temperature,
    rows,
    speech_and_text,
    take_former,
)
from asrtool.registry import OMIT, bounded
from asrtool.types import Batch, ModelOutput


@dataclass(frozen=True, kw_only=True)
class ContrastiveConfig:
    """Contrast of each token's speech with the other tokens of its transcript."""

    weight: float
    input: str = "speech"  # the adapter's rows
    text: str = "text"  # the transcript's embeddings
    # of text and rows in the attention: cosine, scaled or dot as in `matching`; null: cosine
    products: Products | None = None
    # what they are divided by; null: 0.05 of cosines, 1 of others
    attention_temperature: float | None = bounded(None, least=0)
    # how far from its place a token attends, as a share of the utterance; null: everywhere
    band: float | None = bounded(None, least=0)
    temperature: float = bounded(0.1, least=0)  # of the contrast
    # former key of products: true is scaled, false is dot
    scaled: bool | None = field(default=None, metadata=OMIT)

    def __post_init__(self) -> None:
        take_former(self)
        check_temperature(self.temperature)
        check_temperature(self.attention_temperature)


@LOSSES.register("contrastive", ContrastiveConfig)
class ContrastiveLoss(Loss):
    """Sum over the tokens of an utterance, in nats: (B,)."""

    def __init__(self, config: ContrastiveConfig, *, eos: int) -> None:
        self.config = config
        self.head = config.input

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        config = self.config
        speech, text = speech_and_text(outputs, config)
        weights = attention(
            text, speech, config.products, config.attention_temperature, config.band
        )
        context = attended(weights, speech)
        known = text.data.masked_fill(~text.mask[:, :, None], 0)
        products = (
            normalize(context, dim=2) @ normalize(known, dim=2).transpose(1, 2) / config.temperature
        )
        # (B, U, U): equal tokens are positives. The diagonal is set in the padding too, so that no
        # row is without one.
        tokens = batch.targets.data
        same = (tokens[:, :, None] == tokens[:, None]) | torch.eye(
            tokens.shape[1], dtype=bool, device=tokens.device
        )
        # not -inf: a row of the padding would be NaN
        lowest = torch.finfo(products.dtype).min
        products = products.masked_fill(~text.mask[:, None], lowest)
        values = products.logsumexp(2) - products.masked_fill(~same, lowest).logsumexp(2)
        return values.masked_fill(~text.mask, 0).sum(1)

    def example(
        self, frames: int, tokens: int, vocab_size: int, generator: torch.Generator
    ) -> Mapping[str, Tensor]:
        return rows(self.config, frames, tokens, vocab_size, generator)
