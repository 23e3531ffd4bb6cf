"""Multi-head attention with explicit positions and an explicit cache.

Projections are separate linears under the names that LoRA configurations use (`q_proj`, `k_proj`, `v_proj`, `o_proj`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from asrtool.nn.positions import Angles, relative_key, relative_query, rotate


@dataclass(frozen=True)
class KeyValue:
    """Keys and values (B, H, K, D / H) of what was seen. Keys carry no position, so it may be counted anew."""

    key: Tensor
    value: Tensor

    def append(self, new: KeyValue) -> KeyValue:
        return KeyValue(torch.cat([self.key, new.key], dim=2), torch.cat([self.value, new.value], dim=2))

    def rows(self, rows: Tensor) -> KeyValue:
        """Rows (N,) of the batch: beams reorder their caches so."""
        return KeyValue(self.key[rows], self.value[rows])

    def take(self, index: Tensor) -> KeyValue:
        """Keys index (B, K') of each row."""
        index = index[:, None, :, None].expand(-1, self.key.shape[1], -1, self.key.shape[3])
        return KeyValue(self.key.gather(2, index), self.value.gather(2, index))


class Attention(nn.Module):
    """Projections around scaled dot-product attention; subclasses decide how positions enter `attend`."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        if dim % (2 * num_heads):
            raise ValueError(f"attention: dim {dim} must be a multiple of 2 * num_heads = {2 * num_heads}")
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
    """Attention of a sequence to itself and to what the cache holds; no positions: somebody added them to x."""

    def forward(
        self, x: Tensor, mask: Tensor | None, angles: Angles | None = None, cache: KeyValue | None = None,
    ) -> tuple[Tensor, KeyValue]:
        """x (B, Q, D), mask broadcastable to (B, H, Q, K), K = cached keys + Q -> (B, Q, D), all K keys and values."""
        seen = self.project(x)
        seen = seen if cache is None else cache.append(seen)
        return self.merge(self.attend(self.split(self.q_proj(x)), seen, mask, angles)), seen

    def attend(self, query: Tensor, seen: KeyValue, mask: Tensor | None, angles: Angles | None) -> Tensor:
        return scaled_dot_product_attention(query, seen.key, seen.value, mask)


class RotarySelfAttention(SelfAttention):
    """Rotary positions (arXiv 2104.09864): queries and keys are turned by their positions' angles."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.num_frequencies = dim // num_heads // 2

    def attend(self, query: Tensor, seen: KeyValue, mask: Tensor | None, angles: Angles | None) -> Tensor:
        """angles of all K keys; the queries are the last of them."""
        query, key = rotate(query, angles.last(query.shape[2])), rotate(seen.key, angles)
        return scaled_dot_product_attention(query, key, seen.value, mask)


class RelativeSelfAttention(SelfAttention):
    """Relative positions (Transformer-XL, arXiv 1901.02860, section 3.3):

        score(i, j) = ((q_i + u) k_j + (q_i + v) W_kR r_{i-j}) / sqrt(D / H)

    u = `content_bias`, v = `position_bias`, W_kR = `p_proj`. The second term is an inner product of dimension D (see
    asrtool.nn.positions); it is appended to the first.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.num_frequencies = dim // 2
        self.p_proj = nn.Linear(dim, dim, bias=False)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, dim // num_heads))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, 1, dim // num_heads))

    def attend(self, query: Tensor, seen: KeyValue, mask: Tensor | None, angles: Angles | None) -> Tensor:
        """angles of all K keys; the queries are the last of them."""
        weight = self.p_proj.weight.unflatten(0, (self.num_heads, -1))                      # (H, D / H, D)
        towards = relative_query((query + self.position_bias) @ weight, angles.last(query.shape[2]))
        place = relative_key(angles).to(seen.key.dtype).expand(-1, self.num_heads, -1, -1)
        scale = query.shape[-1] ** -0.5
        query = torch.cat([query + self.content_bias, towards.to(query.dtype)], dim=-1)
        key = torch.cat([seen.key, place], dim=-1)
        return scaled_dot_product_attention(query, key, seen.value, mask, scale=scale)


class CrossAttention(Attention):
    """Attention to another sequence, whose keys and values are projected once (`project`) and given as `memory`."""

    def forward(self, x: Tensor, memory: KeyValue, mask: Tensor | None) -> Tensor:
        """x (N, Q, D), memory of B utterances, mask (B, 1, 1, S) -> (N, Q, D).

        N is a multiple of B: rows are utterance-major, and the N / B rows of an utterance (its beams) share one memory.
        """
        together = x.reshape(memory.key.shape[0], -1, x.shape[-1])
        heads = scaled_dot_product_attention(self.split(self.q_proj(together)), memory.key, memory.value, mask)
        return self.merge(heads).view_as(x)
