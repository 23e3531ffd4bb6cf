"""A Transformer language model over the recogniser's tokens (Irie et al., arXiv 1905.04226), for
fusion and rescoring.

    p(y) = prod_u p(y_u | y_<u),  u = 1 ... U + 1,  y_0 = sos, y_{U+1} = eos;  sos and eos are the
        last token

Pre-norm layers, rotary positions, an output layer tied to the embedding. In a search it is the
`Scorer` `lm`, whose state holds keys and values of the prefixes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asrtool.models.base import MODELS
from asrtool.models.text import OUTPUT, TextModel, check_output
from asrtool.nn.attention import KeyValue, RotarySelfAttention
from asrtool.nn.masks import attention_mask, causal_mask
from asrtool.nn.positions import rotations
from asrtool.nn.transformer import TransformerLayer
from asrtool.registry import bounded
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded


@dataclass(frozen=True, kw_only=True)
class LanguageModelConfig:
    """Transformer language model over text; it reads no audio."""

    num_layers: int = bounded(6, least=0)
    dim: int = bounded(512, least=1)
    num_heads: int = bounded(8, least=1)
    ffn_dim: int = bounded(2048, least=1)
    dropout: float = bounded(0.1, least=0, below=1)


@dataclass(frozen=True)
class LanguageModelState:
    """Keys and values (N, H, U, D / H) of each layer; None before the first token. `rows`: N."""

    layers: tuple[KeyValue | None, ...]
    rows: int


@MODELS.register("language_model", LanguageModelConfig)
class LanguageModel(TextModel):
    """Output `lm`: logits (B, U + 1, V); row u predicts token u, the last row eos."""

    partial = False  # Scorer: scores the whole vocabulary

    def __init__(
        self,
        config: LanguageModelConfig,
        *,
        input_dim: int,
        vocab_size: int,
        frame_shift: float,
        heads: frozenset[str],
    ) -> None:
        super().__init__()
        check_output(heads)
        self.frame_shift = frame_shift
        self.eos = vocab_size - 1
        self.embedding = nn.Embedding(vocab_size, config.dim)
        # The embedding is also the output layer, where a standard deviation of 1 would give logits
        # far too large at the start.
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerLayer(
                config.dim,
                RotarySelfAttention(config.dim, config.num_heads),
                config.ffn_dim,
                config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.dim)
        self.output_bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, batch: Batch) -> ModelOutput:
        hidden, lengths = self._read(batch.targets)
        frames = Padded(hidden, lengths)
        positions = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
        logits = Padded(self._logits(hidden), lengths)
        return ModelOutput(
            encoder=EncoderOutput(frames=frames, positions=positions), heads={OUTPUT: logits}
        )

    # -- Scorer: see asrtool.searchers.base ---------------------------------

    def scorers(self) -> Mapping[str, object]:
        return {OUTPUT: self}

    def start(self, encoded: EncoderOutput, beam: int) -> LanguageModelState:
        return LanguageModelState((None,) * len(self.layers), len(encoded.frames.lengths) * beam)

    def score(
        self, prefixes: Tensor, state: LanguageModelState, candidates: Tensor | None
    ) -> tuple[Tensor, LanguageModelState]:
        """Only the newest token of prefixes (N, U) goes through the layers."""
        positions = torch.arange(prefixes.shape[1], device=prefixes.device)[None]
        hidden, layers = self._layers(prefixes[:, -1:], positions, None, state.layers)
        log_probs = self._logits(hidden)[:, 0].float().log_softmax(-1)
        log_probs = log_probs if candidates is None else log_probs.gather(1, candidates)
        return log_probs, LanguageModelState(layers, state.rows)

    def select(self, state: LanguageModelState, rows: Tensor) -> LanguageModelState:
        return LanguageModelState(
            tuple(layer and layer.take(rows) for layer in state.layers), len(rows)
        )

    def sequence_scores(self, encoded: EncoderOutput, targets: Padded) -> Tensor:
        """targets (N, U) without sos/eos -> log p(y) (N,) float64, eos included, for rescoring."""
        hidden, lengths = self._read(targets)
        log_probs = self._logits(hidden).float().log_softmax(-1)
        wanted = targets.append(self.eos).data
        values = log_probs.gather(2, wanted[:, :, None])[:, :, 0].double()
        return (values * Padded(wanted, lengths).mask).sum(1)

    # -- both ----------------------------------------------------------------

    def _read(self, targets: Padded) -> tuple[Tensor, Tensor]:
        """targets (B, U) -> hidden (B, U + 1, D) after sos and each token, lengths (B,)."""
        tokens = F.pad(targets.data, (1, 0), value=self.eos)
        lengths = targets.lengths + 1
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        mask = attention_mask(Padded(tokens, lengths).mask, causal_mask(positions, positions))
        hidden, _ = self._layers(tokens, positions, mask, (None,) * len(self.layers))
        return hidden, lengths

    def _layers(
        self,
        tokens: Tensor,
        positions: Tensor,
        mask: Tensor | None,
        caches: tuple[KeyValue | None, ...],
    ) -> tuple[Tensor, tuple[KeyValue, ...]]:
        """tokens (N, U), positions (1, K) of cached and new tokens, U of them new -> hidden
        (N, U, D), new caches.
        """
        # the embedding has std D ** -0.5, as suits the tied output layer; scaled to 1 for the input
        x = self.dropout(self.embedding(tokens) * self.embedding.embedding_dim**0.5)
        angles = rotations(positions, self.layers[0].attention.num_frequencies)
        seen = []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache = layer(x, mask, angles, cache)
            seen.append(cache)
        return self.norm(x), tuple(seen)

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden, self.embedding.weight, self.output_bias)
