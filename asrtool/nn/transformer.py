"""Pre-norm Transformer layers (arXiv 1706.03762), with caches for label-synchronous search."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import relu

from asrtool.nn.attention import CrossAttention, KeyValue, SelfAttention
from asrtool.nn.dropout import Dropout
from asrtool.nn.feed_forward import FeedForward


@dataclass(frozen=True)
class DecoderLayerCache:
    """Keys and values of a layer."""

    prefix: KeyValue | None  # of the tokens; None before the first one
    memory: KeyValue  # of the frames

    def take(self, rows: Tensor) -> DecoderLayerCache:
        """Utterances rows (B',)."""
        return DecoderLayerCache(self.prefix and self.prefix.take(rows), self.memory.take(rows))


class TransformerDecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each pre-norm and residual."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, num_heads)
        self.ffn_norm = nn.LayerNorm(dim)
        self.up_proj = nn.Linear(dim, ffn_dim)
        self.down_proj = nn.Linear(ffn_dim, dim)
        self.dropout = Dropout(dropout)

    def init_cache(self, memory: Tensor) -> DecoderLayerCache:
        """memory (B, S, D): encoder frames, projected once."""
        return DecoderLayerCache(None, self.cross_attention.project(memory))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        memory_mask: Tensor | None,
        cache: DecoderLayerCache,
    ) -> tuple[Tensor, DecoderLayerCache]:
        """x (N, U, D), the new tokens -> (N, U, D), the cache with them; N is a multiple of B.

        mask, broadcastable to (N, H, U, cached + U): which cached and new tokens each may see;
        None: all. memory_mask (B, 1, 1, S).
        """
        y, prefix = self.attention(self.attention_norm(x), mask, cache=cache.prefix)
        x = x + self.dropout(y)
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), cache.memory, memory_mask))
        x = x + self.dropout(self.down_proj(self.dropout(relu(self.up_proj(self.ffn_norm(x))))))
        return x, DecoderLayerCache(prefix, cache.memory)


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each pre-norm and residual."""

    def __init__(self, dim: int, attention: SelfAttention, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.ffn_norm = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.dropout = Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rotations: Tensor | None = None,
        cache: KeyValue | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """x (N, U, D), the rest as in `SelfAttention` -> (N, U, D), all keys and values."""
        y, seen = self.attention(self.attention_norm(x), mask, rotations, cache)
        x = x + self.dropout(y)
        return x + self.dropout(self.ffn(self.ffn_norm(x))), seen
