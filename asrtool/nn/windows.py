"""Self-attention within a window around each frame, in O(T k) time and memory instead of O(T^2).

    frame i sees the frames i - k // 2 ... i + (k + 1) // 2 - 1 of its utterance,  k = window

The frames are cut into blocks of b queries. A block's keys are b + k - 1 neighbouring frames: a view of the whole
sequence, never copied, so torch's fused attention runs over all blocks of all utterances at once, with one mask of
(b, b + k - 1) and one of the valid keys. What a key of several blocks gets of gradients is added up block by block.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from asrtool.nn.masks import valid_mask

_SHORT = 128            # frames up to which blocks cost more than they save
_FAINTEST = 1e-6        # smaller factors of a fading weight are 0, so that the gradient of their log stays finite


def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None, window: int
) -> Tensor:
    """softmax(query key^T / sqrt(D)) value over each frame's window: heads (B, H, T, D), lengths (B,) -> (B, H, T, D).

    lengths None: all T frames. Rows beyond the length are 0, and what stands there (NaN too) changes nothing. Even
    windows see one frame more before than behind; a window is clipped at both ends of the utterance.
    """
    _check(query, key, value, lengths, window)
    if not query.numel():
        return query.new_zeros(query.shape)
    (query, key, value), lengths, valid = _clean((query, key, value), lengths)
    blocks = Blocks.of(query, window)
    if blocks is None:
        heads = scaled_dot_product_attention(query, key, value, _dense_mask(query, lengths, window))
    else:
        cut = blocks.queries(query), blocks.keys(key), blocks.keys(value)
        heads = blocks.join(scaled_dot_product_attention(*cut, blocks.mask(query, lengths)))
    return heads if valid is None else heads.masked_fill(~valid, 0)


def adaptive_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None, window: int, spans: Tensor, ramp: float
) -> Tensor:
    """As `windowed_attention`, with weights that fade out at each frame's and head's own distance, spans (B, H, T).

        m(i, t) = clamp((ramp + spans_i - |i - t|) / ramp, 0, 1), 1 for t = i;  weights ~ m exp(query key^T / sqrt(D))

    (Adaptive Attention Span, arXiv 1905.07799, equation 5). Gradients reach `spans` from keys on the ramp.
    """
    _check(query, key, value, lengths, window)
    if spans.shape != query.shape[:3]:
        raise ValueError(f"spans {tuple(spans.shape)} must be (B, H, T) = {tuple(query.shape[:3])}")
    if not ramp > 0:
        raise ValueError(f"ramp must be above 0, got {ramp}")
    if not query.numel():
        return query.new_zeros(query.shape)
    (query, key, value), lengths, valid = _clean((query, key, value), lengths)
    if valid is not None:
        spans = spans.masked_fill(~valid[..., 0], 0)
    blocks = Blocks.of(query, window, always=True)
    scores = blocks.queries(query * query.shape[-1] ** -0.5) @ blocks.keys(key).transpose(2, 3)
    reach = blocks.queries(spans[..., None] / ramp + 1) - blocks.distances(spans) / ramp      # (B N, H, b, K)
    fade = reach.clamp(_FAINTEST, 1).log()
    scores = scores + blocks.mask(query, lengths) + fade.to(scores.dtype)
    scores = scores.masked_fill(reach <= _FAINTEST, -torch.inf)
    heads = blocks.join(torch.softmax(scores, dim=-1) @ blocks.keys(value))
    return heads if valid is None else heads.masked_fill(~valid, 0)


@dataclass(frozen=True)
class Blocks:
    """How sequences (B, H, T, D) are cut: `number` blocks N of `size` b queries, whose keys are `ratio` * b frames."""

    batch: int
    frames: int
    window: int
    size: int
    number: int
    ratio: int

    @classmethod
    def of(cls, query: Tensor, window: int, always: bool = False) -> Blocks | None:
        """None where one product of all frames with all is cheaper."""
        batch, _, frames, _ = query.shape
        window = min(window, 2 * frames)                     # wider ones see no more
        size = 1 << max(4, min(7, (window // 2).bit_length() - 1))      # b = k / 2, between 16 and 128, was fastest
        ratio = -(-(size + window - 1) // size)
        if not always and (frames <= _SHORT or frames < 1.3 * ratio * size):
            return None
        return cls(batch, frames, window, size, -(-frames // size), ratio)

    def queries(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B N, H, b, D)."""
        return self._rows(x).unflatten(0, (-1, self.size)).transpose(1, 2)

    def keys(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B N, H, ratio b, D): block n's begin window // 2 frames before it.

        Those of an utterance's first and last block reach into its neighbours in the batch, which the mask hides.
        """
        before, total = self.window // 2, (self.ratio - 1) * self.size
        return _Overlap.apply(pad(self._rows(x), (0, 0, 0, 0, before, total - before)), self.size, self.ratio)

    def _rows(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B N b, H, D)."""
        rows = pad(x.transpose(1, 2), (0, 0, 0, 0, 0, self.number * self.size - self.frames))
        return rows.flatten(0, 1)

    def join(self, heads: Tensor) -> Tensor:
        """(B N, H, b, D) -> (B, H, T, D)."""
        rows = heads.transpose(1, 2).reshape(self.batch, self.number * self.size, *heads.shape[1::2])
        return rows[:, : self.frames].transpose(1, 2)

    def mask(self, like: Tensor, lengths: Tensor) -> Tensor:
        """(B N, 1, b, ratio b) to add to scores."""
        first = torch.arange(self.number, device=like.device) * self.size - self.window // 2
        keys = first[:, None] + torch.arange(self.ratio * self.size, device=like.device)
        hidden = (keys < 0) | (keys >= lengths[:, None, None])
        return _band(self.size, self.ratio * self.size, self.window, 0, like.dtype, like.device) + _hide(hidden, like)

    def distances(self, like: Tensor) -> Tensor:
        """(b, ratio b): frames from query to key; -inf from itself, so that no span is too short for that."""
        apart = torch.arange(self.ratio * self.size, device=like.device) - self.window // 2
        apart = (apart - torch.arange(self.size, device=like.device)[:, None]).abs().to(like.dtype)
        return apart.masked_fill(apart == 0, -torch.inf)


class _Overlap(torch.autograd.Function):
    """rows ((N + ratio - 1) b, H, D) -> (N, H, ratio b, D): overlapping views, one every b rows."""

    @staticmethod
    def forward(ctx, rows: Tensor, size: int, ratio: int) -> Tensor:
        ctx.size, ctx.ratio = size, ratio
        total, heads, dim = rows.shape
        rows = rows.contiguous()
        shape = (total // size - ratio + 1, heads, ratio * size, dim)
        return rows.as_strided(shape, (size * heads * dim, dim, heads * dim, 1), rows.storage_offset())

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        number, heads, _, dim = gradient.shape
        parts = gradient.transpose(1, 2).unflatten(1, (ctx.ratio, ctx.size))
        rows = gradient.new_zeros(number + ctx.ratio - 1, ctx.size, heads, dim)
        for part in range(ctx.ratio):
            rows[part: part + number] += parts[:, part]
        return rows.flatten(0, 1), None, None


def _check(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None, window: int) -> None:
    if query.ndim != 4 or not query.shape == key.shape == value.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise ValueError(f"query, key and value must have one shape (B, H, T, D), got {shapes}")
    if lengths is not None and lengths.shape != query.shape[:1]:
        raise ValueError(f"lengths {tuple(lengths.shape)} must be (B,) = ({query.shape[0]},)")
    if window < 1:
        raise ValueError(f"a window has at least 1 frame, got {window}")


def _clean(
    heads: tuple[Tensor, ...], lengths: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor, Tensor | None]:
    """Heads with 0 in the padding, lengths, and (B, 1, T, 1) valid frames; None where all are."""
    batch, _, frames, _ = heads[0].shape
    if lengths is None:
        return heads, torch.full((batch,), frames, device=heads[0].device), None
    if lengths.device.type == "cpu" and bool((lengths >= frames).all()):   # a GPU would have to wait for the answer
        return heads, lengths, None
    valid = valid_mask(lengths, frames)[:, None, :, None]
    return tuple(x.masked_fill(~valid, 0) for x in heads), lengths, valid


def _hide(hidden: Tensor, like: Tensor) -> Tensor:
    """hidden (B, N, K) -> (B N, 1, 1, K) to add to scores: so little that exp gives 0.

    Not -inf: a frame of the padding, whose output is dropped, may see nothing else, and would give NaN gradients.
    """
    least = max(torch.finfo(like.dtype).min / 4, -1e30)
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, least).flatten(
        0, 1)[:, None, None]


def _dense_mask(query: Tensor, lengths: Tensor, window: int) -> Tensor | None:
    """What all T x T products need: (1 or B, 1, 1 or T, T) to add to scores; None where everybody sees everybody."""
    frames = query.shape[2]
    mask = None
    if window // 2 < frames - 1 or (window + 1) // 2 < frames:
        mask = _band(frames, frames, window, window // 2, query.dtype, query.device)[None, None]
    if lengths.device.type != "cpu" or bool((lengths < frames).any()):
        hidden = _hide(~valid_mask(lengths, frames)[:, None], query)
        mask = hidden if mask is None else mask + hidden
    return mask


@functools.lru_cache(maxsize=64)
def _band(queries: int, keys: int, window: int, before: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(queries, keys): 0 where query i sees key j, -inf elsewhere; it sees i - before ... i - before + window - 1."""
    offset = torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None] + before
    hidden = (offset < 0) | (offset >= window)
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
