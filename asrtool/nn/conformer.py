"""The Conformer layer (arXiv 2005.08100, section 2.4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from asrtool.nn.attention import KeyValue, SelfAttention
from asrtool.nn.convolution import ConvolutionModule
from asrtool.nn.dropout import Dropout
from asrtool.nn.feed_forward import FeedForward
from asrtool.nn.rows import PerRow

ROWS = 64  # packed frames are padded to a multiple of this
WORTH_PACKING = 0.95  # largest share of valid frames at which packing still saves time


@dataclass(frozen=True)
class Memory(PerRow):
    """Positions of the cached keys, and which of them are valid; both (B, K)."""

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

    def keep(self, chunk: int, left_chunks: int | None, most: int | None = None) -> Tensor | slice:
        """Indices (B, K') of the keys that the next chunk may see, right-aligned; a slice where
        those of every row are the last ones, so that nothing is copied. most: of K'.

        K' is the largest number of any row. Shorter rows are padded with keys outside the next
        chunk's view, which its mask hides.
        """
        kept = self.valid
        if left_chunks is not None:
            # the next chunk begins at the position after the last valid one, rounded up to a chunk
            end = ((self.positions + 1) * self.valid).amax(dim=1, keepdim=True)
            next_chunk = (end + chunk - 1) // chunk
            kept = kept & (self.positions // chunk >= next_chunk - left_chunks)
        total = kept.shape[1]
        mixed = (kept[:, :-1] & ~kept[:, 1:]).any()  # a kept key has one on its right that is not
        longest, mixed = torch.stack([kept.sum(dim=1).max(), mixed]).tolist()
        first = total - (longest if most is None else min(longest, most))
        if not mixed:
            return slice(first, total)
        # a stable sort puts False before True, each in order of time: kept keys end up on the right
        return kept.int().argsort(dim=1, stable=True)[:, first:]

    def join(self, other: Memory) -> Memory:
        """The rows of both, right-aligned like the keys; the padding on their left is not valid."""
        keys = max(self.positions.shape[1], other.positions.shape[1])

        def joined(first: Tensor, second: Tensor) -> Tensor:
            return torch.cat([pad(part, (keys - part.shape[1], 0)) for part in (first, second)])

        return Memory(joined(self.positions, other.positions), joined(self.valid, other.valid))

    def gather(self, index: Tensor | slice) -> Memory:
        """Keys index (B, K') of each row, or the same ones of all rows."""
        if isinstance(index, slice):
            return Memory(self.positions[:, index], self.valid[:, index])
        return Memory(self.positions.gather(1, index), self.valid.gather(1, index))


@dataclass(frozen=True)
class NewFrames(Memory):
    """The frames of this piece, and where all positions lie on a grid the sinusoids of their
    distances to all keys (S + K, D), for relative positions (`asrtool.nn.positions`).
    """

    distances: Tensor | None = None


@dataclass(frozen=True)
class Scope:
    """Shared by all layers at one frame rate: valid frames, positions, and what each may see."""

    valid: Tensor  # (B, S)
    visible: Tensor  # (B, 1, S or 1, K): K = cached keys + S
    rotations: Tensor  # (B, 1, K, n): positions of the keys; the last S are also the queries'
    # (N,): indices of the valid frames among B * S, if feed-forwards skip the padding
    rows: Tensor | None = None
    keep: Tensor | slice | None = None  # the keys that stay in the caches (`Memory.keep`)
    frames: NewFrames | None = None


@dataclass(frozen=True)
class ConformerLayerCache(PerRow):
    """A layer's past: the cache of its attention, and the convolution's left context
    (B, kernel - 1, D).

    The attention defines its own cache, whose `gather` keeps the given keys.
    """

    attention: KeyValue
    convolution: Tensor


def packed_rows(valid: Tensor) -> Tensor | None:
    """valid (B, S) -> indices (N,) of the frames among B * S that feed-forwards compute; None: all.

    The N include all valid frames. Copying rows out and back takes as long as a few percent of
    padding, so packing must save more than that. N is a multiple of `ROWS`, so that sizes recur:
    kernels are set up for each size. On a GPU, counting the rows would wait for the device, and a
    compiled or exported graph cannot depend on their number.
    """
    if valid.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    number = -(-int(valid.sum()) // ROWS) * ROWS
    if number > WORTH_PACKING * valid.numel():
        return None
    # a stable sort: valid frames come first, in order, and some padding completes the multiple
    return (~valid).flatten().to(torch.uint8).argsort(stable=True)[:number]


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward; pre-norm, with a final norm."""

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
        convolution = self.convolution.init_cache(batch_size)
        return ConformerLayerCache(self.attention.init_cache(convolution[:, :0]), convolution)

    def forward(
        self,
        x: Tensor,
        scope: Scope,
        cache: ConformerLayerCache | None = None,
    ) -> tuple[Tensor, ConformerLayerCache | None]:
        """x (B, S, D) -> (B, S, D), the next cache; None if there was none."""
        x = self._half_step(x, self.first_norm, self.first, scope.rows)
        past = (None, None) if cache is None else (cache.attention, cache.convolution)
        y, seen = self.attention(
            self.attention_norm(x), scope.visible, scope.rotations, past[0], scope.frames
        )
        x = x + self.dropout(y)
        y, history = self.convolution(self.convolution_norm(x), scope.valid, past[1])
        x = x + self.dropout(y)
        x = self._half_step(x, self.second_norm, self.second, scope.rows)
        return self.final_norm(x), None if cache is None else ConformerLayerCache(
            seen.gather(scope.keep), history
        )

    def _half_step(
        self, x: Tensor, norm: nn.LayerNorm, ffn: FeedForward, rows: Tensor | None
    ) -> Tensor:
        # x + 1/2 FFN(norm(x)); with `rows`, the padding keeps its x
        if rows is None:
            return torch.add(x, self.dropout(ffn(norm(x))), alpha=0.5)
        flat = x.flatten(0, 1)  # (B S, D)
        y = self.dropout(ffn(norm(flat.index_select(0, rows))))
        return flat.index_add(0, rows, y.to(x.dtype), alpha=0.5).view_as(x)
