"""Transformer attention decoder (arXiv 1706.03762, layer norm in front); in a search it is a `Scorer` with caches.

    p(y_u | y_<u, x),  u = 1 ... U + 1,  y_0 = sos, y_{U+1} = eos;  sos and eos are the last token of the vocabulary

One layer loop serves training (all tokens at once, causal mask) and search (the newest token, its past in the cache).
Cross-attention keys and values are projected once per utterance and shared by its beams.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asrtool.decoders.base import DECODERS, Decoder
from asrtool.nn.masks import attention_mask, causal_mask
from asrtool.nn.positions import turns
from asrtool.nn.transformer import DecoderLayerCache, TransformerDecoderLayer
from asrtool.types import EncoderOutput, Padded


@dataclass(frozen=True, kw_only=True)
class TransformerDecoderConfig:
    """Attention decoder; its width is the encoder's."""

    num_layers: int = 6
    num_heads: int = 4
    ffn_dim: int = 2048
    dropout: float = 0.1


@dataclass(frozen=True)
class DecoderState:
    """Caches of all layers and the mask of the frames (B, 1, 1, S); beam rows per utterance."""

    layers: tuple[DecoderLayerCache, ...]
    memory_mask: Tensor
    beam: int


@DECODERS.register("transformer", TransformerDecoderConfig)
class TransformerDecoder(Decoder):
    """Embedding (tied to the output layer), sinusoidal positions, layers, softmax over the vocabulary."""

    partial = False  # Scorer: rates the whole vocabulary

    def __init__(self, config: TransformerDecoderConfig, *, dim: int, vocab_size: int) -> None:
        super().__init__()
        self.sos = vocab_size - 1
        self.embedding = nn.Embedding(vocab_size, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            TransformerDecoderLayer(dim, config.num_heads, config.ffn_dim, config.dropout)
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.output_bias = nn.Parameter(torch.zeros(vocab_size))

    def forward(self, encoded: EncoderOutput, targets: Padded) -> Padded:
        tokens = F.pad(targets.data, (1, 0), value=self.sos)  # (B, U + 1)
        lengths = targets.lengths + 1
        positions = torch.arange(tokens.shape[1], device=tokens.device)[None]
        mask = attention_mask(Padded(tokens, lengths).mask, causal_mask(positions, positions))
        state = self._start(encoded, beam=1)
        logits, _ = self._layers(tokens, positions, mask, state)
        return Padded(logits, lengths)

    # -- Scorer: see asrtool.searchers.base ---------------------------------

    def start(self, encoded: EncoderOutput, beam: int) -> DecoderState:
        return self._start(encoded, beam)

    def score(
        self, prefixes: Tensor, state: DecoderState, candidates: Tensor | None = None
    ) -> tuple[Tensor, DecoderState]:
        """The newest token of prefixes (N, U) goes through the layers, its past is cached: (N, V) log-probabilities."""
        newest = prefixes.shape[1] - 1
        positions = torch.full((1, 1), newest, device=prefixes.device)
        logits, state = self._layers(prefixes[:, -1:], positions, None, state)
        log_probs = logits[:, 0].float().log_softmax(-1)
        return (log_probs if candidates is None else log_probs.gather(1, candidates)), state

    def select(self, state: DecoderState, rows: Tensor) -> DecoderState:
        """rows (N,): whole utterances may be left out, beams never leave theirs."""
        layers = state.layers
        utterances = rows[:: state.beam] // state.beam
        if len(utterances) < len(state.memory_mask):
            layers = tuple(DecoderLayerCache(layer.prefix, layer.memory.rows(utterances)) for layer in layers)
            state = DecoderState(layers, state.memory_mask[utterances], state.beam)
        return DecoderState(tuple(layer.rows(rows) for layer in layers), state.memory_mask, state.beam)

    # -- both ----------------------------------------------------------------

    def _start(self, encoded: EncoderOutput, beam: int) -> DecoderState:
        memory_mask = attention_mask(encoded.frames.mask)
        return DecoderState(tuple(layer.init_cache(encoded.frames.data) for layer in self.layers), memory_mask, beam)

    def _layers(
        self, tokens: Tensor, positions: Tensor, mask: Tensor | None, state: DecoderState
    ) -> tuple[Tensor, DecoderState]:
        """tokens (N, U), positions (1, U) -> logits (N, U, V)."""
        sinusoids = torch.view_as_real(turns(positions, self.embedding.embedding_dim // 2)).flatten(-2)[:, 0]
        x = self.embedding(tokens) * self.embedding.embedding_dim**0.5 + sinusoids
        x = self.dropout(x)
        caches = []
        for layer, cache in zip(self.layers, state.layers, strict=True):
            x, cache = layer(x, mask, state.memory_mask, cache)
            caches.append(cache)
        logits = F.linear(self.norm(x), self.embedding.weight, self.output_bias)
        return logits, DecoderState(tuple(caches), state.memory_mask, state.beam)
