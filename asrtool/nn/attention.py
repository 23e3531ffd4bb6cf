"""Multi-head attention with explicit positions and an explicit cache.

Projections are separate linears under the names that LoRA configurations use (`q_proj`, `k_proj`,
`v_proj`, `o_proj`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad, scaled_dot_product_attention

from asrtool.nn.dropout import random_mask
from asrtool.nn.positions import rotate
from asrtool.nn.relative import RelativeAttention, diagonals
from asrtool.nn.rows import PerRow, chosen
from asrtool.nn.windows import windowed_attention

if TYPE_CHECKING:
    from asrtool.nn.conformer import NewFrames

__all__ = [
    "Attention",
    "CrossAttention",
    "GrowingKeyValue",
    "KeyValue",
    "RelativeSelfAttention",
    "Room",
    "RotarySelfAttention",
    "SelfAttention",
    "attention",
    "windowed_attention",
]


@dataclass(frozen=True)
class KeyValue(PerRow):
    """Keys and values (B, H, K, D / H) of past frames or tokens.

    Positions are applied when attention is computed, so the cached keys hold none, and positions
    may be counted from another origin at every call.
    """

    key: Tensor
    value: Tensor

    def append(self, new: KeyValue) -> KeyValue:
        return KeyValue(
            torch.cat([self.key, new.key], dim=2), torch.cat([self.value, new.value], dim=2)
        )

    def take(self, rows: Tensor) -> KeyValue:
        """Rows (N,) of the batch; beams reorder their caches this way."""
        return KeyValue(chosen(self.key, rows), chosen(self.value, rows))

    def join(self, other: KeyValue) -> KeyValue:
        """The rows of both, right-aligned: shorter ones are padded with zeros on the left."""
        keys = max(self.key.shape[2], other.key.shape[2])

        def joined(*pair: Tensor) -> Tensor:
            # `pad` copies even where it adds nothing, which is the rule once caches are full
            short = [keys - part.shape[2] for part in pair]
            return torch.cat(
                [
                    pad(part, (0, 0, missing, 0)) if missing else part
                    for part, missing in zip(pair, short, strict=True)
                ]
            )

        return KeyValue(joined(self.key, other.key), joined(self.value, other.value))

    def gather(self, index: Tensor | slice) -> KeyValue:
        """Keys index (B, K') of each row, or the same ones of all rows."""
        if isinstance(index, slice):
            return KeyValue(self.key[:, :, index], self.value[:, :, index])
        index = index[:, None, :, None].expand(-1, self.key.shape[1], -1, self.key.shape[3])
        return KeyValue(self.key.gather(2, index), self.value.gather(2, index))


@dataclass
class Room:
    """Buffers (B, H, capacity, D / H) for keys and values, of which the first `used` are filled."""

    key: Tensor
    value: Tensor
    used: int


@dataclass(frozen=True)
class GrowingKeyValue(KeyValue):
    """Keys and values in a buffer with spare room: `append` copies the new ones only.

    For search, not for training. Instances are immutable: a second `append` to the same one copies
    it into another buffer.
    """

    room: Room

    @classmethod
    def empty(cls, like: KeyValue) -> GrowingKeyValue:
        """No keys; batch size, heads, width and dtype of `like`."""
        return cls.of(KeyValue(like.key[:, :, :0], like.value[:, :, :0]))

    @classmethod
    def of(cls, full: KeyValue) -> GrowingKeyValue:
        """The same keys and values, without room for more."""
        return cls(full.key, full.value, Room(full.key, full.value, full.key.shape[2]))

    def append(self, new: KeyValue) -> GrowingKeyValue:
        used, grown = self.key.shape[2], self.extend(new.key.shape[2])
        grown.key[:, :, used:], grown.value[:, :, used:] = new.key, new.value
        return grown

    def extend(self, count: int) -> GrowingKeyValue:
        """With `count` more keys and values, for the caller to write."""
        room, used = self.room, self.key.shape[2]
        total = used + count
        # The room after these keys is taken by another `extend`, or too small: move to a buffer
        # twice as large as needed, so that a key is copied O(1) times on average.
        if room.used != used or total > room.key.shape[2]:
            shape = (*self.key.shape[:2], 2 * total, self.key.shape[3])
            room = Room(self.key.new_empty(shape), self.value.new_empty(shape), used)
            room.key[:, :, :used], room.value[:, :, :used] = self.key, self.value
        room.used = total
        return GrowingKeyValue(room.key[:, :, :total], room.value[:, :, :total], room)

    def take(self, rows: Tensor) -> GrowingKeyValue:
        return self.of(super().take(rows))


class Attention(nn.Module):
    """Projections around scaled dot-product attention; subclasses add positions in `attend`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % (2 * num_heads):
            raise ValueError(
                f"attention: dim {dim} must be a multiple of 2 * num_heads = {2 * num_heads}"
            )
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.o_proj = nn.Linear(dim, dim)

    def split(self, x: Tensor) -> Tensor:
        """(B, S, D) -> (B, H, S, D / H)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def merge(self, heads: Tensor) -> Tensor:
        """(B, H, S, D / H) -> (B, S, D), through the output projection."""
        return self.o_proj(heads.transpose(1, 2).flatten(2))

    def project(self, memory: Tensor) -> KeyValue:
        """memory (B, S, D) -> its keys and values."""
        return KeyValue(self.split(self.k_proj(memory)), self.split(self.v_proj(memory)))


class SelfAttention(Attention):
    """Attention of a sequence to itself and to cached keys; x must carry its positions.

    dropout: probability that a weight of the softmax is 0 in training.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, num_heads)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout {dropout} of attention is not a probability below 1")
        self.probability = dropout

    @property
    def dropout(self) -> float:
        """The probability in the present mode: 0 outside training."""
        return self.probability if self.training else 0.0

    def init_cache(self, nothing: Tensor) -> KeyValue:
        """No keys yet; nothing (B, 0, D)."""
        return KeyValue(self.split(nothing), self.split(nothing))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rotations: Tensor | None = None,
        cache: KeyValue | None = None,
        frames: NewFrames | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """x (B, Q, D), mask broadcastable to (B, H, Q, K) -> (B, Q, D), all K keys and values.

        K counts the cached keys and the Q new ones. rotations (B, 1, K, n): the positions of all K
        keys (asrtool.nn.positions); the last Q are those of the queries. frames: positions and
        validity of the new frames, which only windowed attention reads.
        """
        query, new = self.project_self(x)
        seen = new if cache is None else cache.append(new)
        return self.merge(self.attend(query, seen, mask, rotations, frames)), seen

    def project_self(self, x: Tensor) -> tuple[Tensor, KeyValue]:
        """x (B, Q, D) -> queries (B, H, Q, D / H), keys and values."""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        # LoRA replaces linears by wrappers, which must be called one by one
        if any(type(projection) is not nn.Linear for projection in projections):
            return self.split(self.q_proj(x)), self.project(x)
        # one product (D, 3 D) instead of three (D, D): fewer passes over x
        weight = torch.cat([projection.weight for projection in projections])
        bias = torch.cat([projection.bias for projection in projections])
        query, key, value = map(self.split, linear(x, weight, bias).chunk(3, dim=-1))
        return query, KeyValue(key, value)

    def attend(
        self,
        query: Tensor,
        seen: KeyValue,
        mask: Tensor | None,
        rotations: Tensor | None,
        frames: NewFrames | None = None,
    ) -> Tensor:
        return attention(query, seen.key, seen.value, mask, dropout=self.dropout)


class RotarySelfAttention(SelfAttention):
    """Rotary positions (arXiv 2104.09864): queries and keys are rotated by their positions."""

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, num_heads, dropout)
        self.num_frequencies = dim // num_heads // 2

    def attend(
        self,
        query: Tensor,
        seen: KeyValue,
        mask: Tensor | None,
        rotations: Tensor | None,
        frames: NewFrames | None = None,
    ) -> Tensor:
        # rotations are float32 also under autocast; products are computed in the type of the values
        query = rotate(query, rotations[:, :, -query.shape[2] :]).to(seen.value.dtype)
        key = rotate(seen.key, rotations).to(seen.value.dtype)
        return attention(query, key, seen.value, mask, dropout=self.dropout)


class RelativeSelfAttention(SelfAttention):
    """Relative positions (Transformer-XL, arXiv 1901.02860, section 3.3):

        score(i, j) = ((q_i + u) k_j + (q_i + v) W_kR r_{i-j}) / sqrt(D / H)

    u = `content_bias`, v = `position_bias`, W_kR = `p_proj`, r_d = cos and -sin of d times D / 2
    frequencies. With positions on a grid W_kR r_d is computed once for each distance; with gaps
    (key frames) the second term is computed for each pair, with H times as many operations.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, num_heads, dropout)
        self.num_frequencies = dim // 2
        self.p_proj = nn.Linear(dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, dim // num_heads))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, 1, dim // num_heads))

    def attend(
        self,
        query: Tensor,
        seen: KeyValue,
        mask: Tensor | None,
        rotations: Tensor | None,
        frames: NewFrames | None = None,
    ) -> Tensor:
        distances = None if frames is None else frames.distances
        if distances is None:
            bias = self._bias_of_pairs(query, rotations)
            content = query + self.content_bias
            return attention(content, seen.key, seen.value, mask, bias, self.dropout)
        table = self.split(self.p_proj(distances)[None])[0].transpose(1, 2)  # (H, D / H, Q + K)
        if query.device.type == "cpu" and not torch.compiler.is_compiling():
            return self._by_blocks(query, seen, table, mask)
        position = (query + self.position_bias).transpose(0, 1)  # all utterances share the table
        scores = (position.flatten(1, 2) @ table).view(*position.shape[:3], -1)
        bias = diagonals(scores, seen.key.shape[2]).transpose(0, 1)
        content = query + self.content_bias
        return attention(content, seen.key, seen.value, mask, bias, self.dropout)

    def _by_blocks(
        self, query: Tensor, seen: KeyValue, table: Tensor, mask: Tensor | None
    ) -> Tensor:
        scale, kind = query.shape[-1] ** -0.5, query.dtype
        content, position = (
            torch.add(scale * bias, query, alpha=scale).to(kind)
            for bias in (self.content_bias, self.position_bias)
        )
        if mask is not None:
            mask = torch.zeros_like(mask, dtype=kind).masked_fill_(~mask, -torch.inf)
        kept = None
        if self.dropout:
            kept = random_mask(
                torch.Size((*query.shape[:3], seen.key.shape[2])), self.dropout, kind
            )
        return RelativeAttention.apply(
            content, position, seen.key, seen.value, table.to(kind).contiguous(), mask, kept
        )

    def _bias_of_pairs(self, query: Tensor, rotations: Tensor) -> Tensor:
        """The second term for any positions, (B, H, Q, K)."""
        # W_kR^T (q_i + v) is read as D / 2 complex coefficients. Rotated by the query's position
        # and multiplied by the sinusoids of the keys, they give cos and sin of (i - j) w. So no
        # (Q, K, D) table of relative positions is built, and none is shifted.
        weight = self.p_proj.weight.unflatten(0, (self.num_heads, -1))  # (H, D / H, D)
        coefficients = rotate(
            (query + self.position_bias) @ weight, rotations[:, :, -query.shape[2] :]
        )
        # (B, H, Q, D) by now, cos and sin interleaved as in `sinusoids`
        sinusoids = torch.view_as_real(rotations).flatten(-2)  # (B, 1, K, D)
        bias = coefficients.flatten(1, 2) @ sinusoids.squeeze(1).transpose(1, 2)  # (B, H Q, K)
        return bias.unflatten(1, query.shape[1:3])


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """dropout(softmax((query key^T + bias) / sqrt(D / H))) value.

    query (B, H, Q, D / H), key and value (B, H, K, D / H), mask broadcastable to (B, H, Q, K), bias
    (B, H, Q, K) -> (B, H, Q, D / H). Uses torch's fused kernel, except on CPU with a bias (for
    which it has no gradient), bfloat16 (where it is half as fast as plain products) or dropout
    (which it lacks).
    """
    scale = query.shape[-1] ** -0.5
    plain = bias is not None or query.dtype == torch.bfloat16 or dropout > 0
    if query.device.type != "cpu" or not plain:
        if bias is not None:
            # the kernel scales only the products, and takes a single mask: the bias with -inf in it
            bias = bias * scale
            mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
        return scaled_dot_product_attention(query, key, value, mask, dropout)
    shape = (*query.shape[:3], key.shape[2])
    # scale * bias + scale * query key^T in one call, over B H matrices
    start = query.new_zeros(()) if bias is None else bias.to(query.dtype)
    scores = torch.baddbmm(
        start.expand(shape).flatten(0, 1),
        query.flatten(0, 1),
        key.flatten(0, 1).transpose(1, 2),
        beta=scale,
        alpha=scale,
    ).view(shape)
    if mask is not None:
        scores = scores.add_(
            torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf)
        )
    weights = torch.softmax(scores, dim=-1)
    if dropout:
        weights = weights * random_mask(weights.shape, dropout, weights.dtype)
    return weights @ value


class CrossAttention(Attention):
    """Attention to another sequence, given as `memory`: keys and values from `project`."""

    def forward(self, x: Tensor, memory: KeyValue, mask: Tensor | None) -> Tensor:
        """x (N, Q, D), memory of B utterances, mask (B, 1, 1, S) -> (N, Q, D).

        N is a multiple of B: rows are utterance-major, and the N / B rows of an utterance (its
        beams) share one memory.
        """
        # (N, Q, D) -> (B, N / B Q, D): beams are more queries of one utterance
        together = x.reshape(memory.key.shape[0], -1, x.shape[-1])
        heads = attention(self.split(self.q_proj(together)), memory.key, memory.value, mask)
        return self.merge(heads).view_as(x)
