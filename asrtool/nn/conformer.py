"""The Conformer layer (arXiv 2005.08100, section 2.4): attention and convolution between half
feed-forwards.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asrtool.nn.attention import KeyValue, SelfAttention
from asrtool.nn.convolution import ConvolutionModule
from asrtool.nn.dropout import Dropout
from asrtool.nn.feed_forward import FeedForward

ROWS = 64  # packed frames come in multiples
WORTH_PACKING = 0.95  # share of all frames up to which packing is faster than computing padding


@dataclass(frozen=True)
class Memory:
    """Which cached keys there are: positions and valid, both (B, K)."""

    positions: Tensor
    valid: Tensor

    @classmethod
    def empty(cls, batch_size: int, device: torch.device) -> Memory:
        nothing = torch.zeros(batch_size, 0, dtype=torch.int64, device=device)
        return cls(nothing, nothing.bool())

    def append(self, new: Memory) -> Memory:
        return Memory(
            torch.cat([self.positions, new.positions], dim=1),
            torch.cat([self.valid, new.valid], dim=1),
        )

    def keep(self, chunk: int, left_chunks: int | None) -> Tensor:
        """Index (B, K') of the keys that the next chunk may see, right-aligned; shorter rows are
        filled with others.
        """
        kept = self.valid
        if left_chunks is not None:
            end = ((self.positions + 1) * self.valid).amax(dim=1, keepdim=True)
            next_chunk = (end + chunk - 1) // chunk
            kept = kept & (self.positions // chunk >= next_chunk - left_chunks)
        longest = int(kept.sum(dim=1).max())
        return kept.int().argsort(dim=1, stable=True)[:, kept.shape[1] - longest :]

    def take(self, index: Tensor) -> Memory:
        """Keys index (B, K') of each row."""
        return Memory(self.positions.gather(1, index), self.valid.gather(1, index))


@dataclass(frozen=True)
class Scope:
    """What layers of one frame rate share: which frames are valid, what each may see, and where all
    of them are.
    """

    valid: Tensor  # (B, S)
    visible: Tensor  # (B, 1, S or 1, K): K = cached keys + S
    rotations: Tensor  # (B, 1, K, n) positions of the keys; the queries are the last S
    # places of the valid frames among B * S, for layers that skip the rest
    rows: Tensor | None = None
    keep: Tensor | None = None  # (B, K') the keys that the caches go on with


@dataclass(frozen=True)
class ConformerLayerCache:
    """What a layer remembers of the past: keys and values, and the convolution's left context (B,
    kernel - 1, D).
    """

    attention: KeyValue
    convolution: Tensor


def packed_rows(valid: Tensor) -> Tensor | None:
    """Which of the B * S frames the feed-forwards compute, (N,), all valid (B, S) ones among them;
    None: every frame.

    Copying rows out and back costs as much time as a few percent of padding. Some padding makes N a
    multiple of `ROWS`, so that it recurs: kernels are made for a size. On a GPU counting the rows
    would make it wait for the CPU, and a graph that is compiled or exported cannot depend on their
    number.
    """
    if valid.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    number = -(-int(valid.sum()) // ROWS) * ROWS
    if number > WORTH_PACKING * valid.numel():
        return None
    # the valid ones come first
    return (~valid).flatten().to(torch.uint8).argsort(stable=True)[:number]


class ConformerLayer(nn.Module):
    """x + half feed-forward, + attention, + convolution, + half feed-forward, a norm before each
    and at the end.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        attention: SelfAttention,
        convolution: ConvolutionModule,
        dropout: float,
    ) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(dim)
        self.first = FeedForward(dim, ffn_dim, dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.convolution_norm = nn.LayerNorm(dim)
        self.convolution = convolution
        self.second_norm = nn.LayerNorm(dim)
        self.second = FeedForward(dim, ffn_dim, dropout)
        self.final_norm = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def init_cache(self, batch_size: int) -> ConformerLayerCache:
        empty = self.attention.split(self.convolution.init_cache(batch_size)[:, :0])
        return ConformerLayerCache(KeyValue(empty, empty), self.convolution.init_cache(batch_size))

    def forward(
        self,
        x: Tensor,
        scope: Scope,
        cache: ConformerLayerCache | None = None,
    ) -> tuple[Tensor, ConformerLayerCache | None]:
        """x (B, S, D) -> (B, S, D) and the next cache. Without a cache (offline) none comes
        back.
        """
        x = self._half_step(x, self.first_norm, self.first, scope.rows)
        past = (None, None) if cache is None else (cache.attention, cache.convolution)
        y, seen = self.attention(self.attention_norm(x), scope.visible, scope.rotations, past[0])
        x = x + self.dropout(y)
        y, history = self.convolution(self.convolution_norm(x), scope.valid, past[1])
        x = x + self.dropout(y)
        x = self._half_step(x, self.second_norm, self.second, scope.rows)
        return self.final_norm(x), None if cache is None else ConformerLayerCache(
            seen.take(scope.keep), history
        )

    def _half_step(
        self, x: Tensor, norm: nn.LayerNorm, ffn: FeedForward, rows: Tensor | None
    ) -> Tensor:
        if rows is None:
            return torch.add(x, self.dropout(ffn(norm(x))), alpha=0.5)
        flat = x.flatten(0, 1)
        y = self.dropout(ffn(norm(flat.index_select(0, rows))))
        return flat.index_add(0, rows, y.to(x.dtype), alpha=0.5).view_as(x)
