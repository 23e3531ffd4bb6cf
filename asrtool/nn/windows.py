"""Self-attention within a window around each frame, in O(T k) time and memory instead of O(T^2).

    frame i sees the frames i - k // 2 ... i + (k + 1) // 2 - 1 of its utterance,  k = window

The frames are cut into blocks of b queries. A block's keys are b + k - 1 neighbouring frames: a
view of the whole sequence, never copied, so torch's fused attention runs over all blocks of all
utterances at once, with one mask of (b, b + k - 1) and one of the valid keys. What a key of several
blocks gets of gradients is added up block by block.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from asrtool.nn.masks import valid_mask

_SHORT = 128  # frames up to which blocks cost more than they save
# of a block: up to which window it was the fastest
_SIZES = {16: 31, 32: 127, 64: 511, 128: sys.maxsize}
_PORTION = 1 << 21  # numbers in the keys of the blocks that are computed at once
# smaller factors of a fading weight are 0, so that the gradient of their log stays finite
_FAINTEST = 1e-6


def windowed_attention(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None, window: int
) -> Tensor:
    """softmax(query key^T / sqrt(D)) value over each frame's window: heads (B, H, T, D), lengths
    (B,) -> (B, H, T, D).

    lengths None: all T frames. Rows beyond the length are 0, and what stands there (NaN too)
    changes nothing. Even windows see one frame more before than behind; a window is clipped at both
    ends of the utterance.
    """
    _check(query, key, value, lengths, window)
    if not query.numel():
        return query.new_zeros(query.shape)
    query, key, value, lengths, valid = _clean(query, key, value, lengths)
    blocks = Blocks.of(query, window)
    if blocks is None:
        heads = scaled_dot_product_attention(query, key, value, _dense_mask(query, valid, window))
    else:
        parts = zip(
            blocks.queries(query).split(blocks.portion(query)),
            blocks.keys(key),
            blocks.keys(value),
            blocks.mask(query, lengths).split(blocks.portion(query)),
            strict=True,
        )
        heads = blocks.join([scaled_dot_product_attention(*part) for part in parts])
    return heads if valid is None else heads.masked_fill(~valid, 0)


def adaptive_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    window: int,
    spans: Tensor,
    ramp: float,
) -> Tensor:
    """As `windowed_attention`, with weights that fade out at each frame's and head's own distance,
    spans (B, H, T).

        m(i, t) = clamp((ramp + spans_i - |i - t|) / ramp, 0, 1), 1 for t = i;  weights ~ m
            exp(query key^T / sqrt(D))

    (Adaptive Attention Span, arXiv 1905.07799, equation 5). Gradients reach `spans` from keys on
    the ramp.
    """
    _check(query, key, value, lengths, window)
    if spans.shape != query.shape[:3]:
        raise ValueError(f"spans {tuple(spans.shape)} must be (B, H, T) = {tuple(query.shape[:3])}")
    if not ramp > 0:
        raise ValueError(f"ramp must be above 0, got {ramp}")
    if not query.numel():
        return query.new_zeros(query.shape)
    shape = query.shape
    query, key, value, lengths, valid = _clean(query, key, value, lengths)
    if valid is not None:
        spans = spans.masked_fill(~valid[..., 0], 0)
        lengths = lengths.repeat_interleave(shape[1])
    # Each head is an utterance of one head from here on: its blocks are then matrices that torch
    # multiplies in place.
    query, key, value, spans = (
        x.flatten(0, 1)[:, None] for x in (query * shape[3] ** -0.5, key, value, spans)
    )
    blocks = Blocks.of(query, window, always=True)
    portion = blocks.portion(query)
    reaches, distances = blocks.queries(spans[..., None] / ramp + 1), blocks.distances(spans) / ramp
    heads = blocks.join(
        [
            _fading(q, k, v, hidden, reach - distances)
            for q, k, v, hidden, reach in zip(
                blocks.queries(query).split(portion),
                blocks.keys(key),
                blocks.keys(value),
                blocks.hidden(query, lengths).split(portion),
                reaches.split(portion),
                strict=True,
            )
        ]
    )
    heads = heads[:, 0].unflatten(0, shape[:2])
    return heads if valid is None else heads.masked_fill(~valid, 0)


def _fading(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, reach: Tensor) -> Tensor:
    """Blocks (N, 1, b, D) of scaled queries, (N, 1, K, D); reach (N, 1, b, K): m before it is cut
    off at 0 and 1.
    """
    scores = (
        (query @ key.transpose(2, 3))
        .add_(hidden)
        .add_(reach.clamp(_FAINTEST, 1).log().to(query.dtype))
    )
    return torch.softmax(scores.masked_fill_(reach <= _FAINTEST, -torch.inf), dim=-1) @ value


@dataclass(frozen=True)
class Blocks:
    """How sequences (B, H, T, D) are cut: `number` blocks N of `size` b queries, whose keys are
    `ratio` * b frames.
    """

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
        if frames <= _SHORT and not always:
            return None
        window = min(window, 2 * frames)  # wider ones see no more
        size = next(size for size, widest in _SIZES.items() if window <= widest)
        ratio = -(-(size + window - 1) // size)
        if not always and frames < 1.4 * ratio * size + 32:
            return None
        return cls(batch, frames, window, size, -(-frames // size), ratio)

    def queries(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B N, H, b, D)."""
        return self._rows(x).unflatten(0, (-1, self.size)).transpose(1, 2)

    def portion(self, x: Tensor) -> int:
        """Blocks at once: on a CPU larger buffers would be fetched from the system, and cleared,
        for every call.
        """
        each = x.shape[1] * x.shape[3] * self.size * self.ratio
        return max(1, _PORTION // each) if x.device.type == "cpu" else self.batch * self.number

    def keys(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, H, T, D) -> portions of (B N, H, ratio b, D): block n's begin window // 2 frames
        before it.

        Those of an utterance's first and last block reach into its neighbours in the batch, which
        the mask hides.
        """
        before, total = self.window // 2, (self.ratio - 1) * self.size
        rows = pad(self._rows(x), (0, 0, 0, 0, before, total - before))
        return _Overlap.apply(rows, self.size, self.ratio, self.portion(x))

    def _rows(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B N b, H, D)."""
        rows = pad(x.transpose(1, 2), (0, 0, 0, 0, 0, self.number * self.size - self.frames))
        return rows.flatten(0, 1)

    def join(self, heads: Sequence[Tensor]) -> Tensor:
        """Portions of (B N, H, b, D) -> (B, H, T, D)."""
        turned = [part.transpose(1, 2) for part in heads]
        rows = turned[0] if len(turned) == 1 else torch.cat(turned)
        rows = rows.reshape(self.batch, self.number * self.size, *rows.shape[2:])
        return rows[:, : self.frames].transpose(1, 2)

    def mask(self, like: Tensor, lengths: Tensor | None) -> Tensor:
        """(B N, 1, b, ratio b) to add to scores; lengths None: all T frames."""
        band = _band(self.size, self.ratio * self.size, self.window, 0, like.dtype, like.device)
        return band + self.hidden(like, lengths)

    def hidden(self, like: Tensor, lengths: Tensor | None) -> Tensor:
        """(B N, 1, 1, ratio b) to add to scores, for keys outside of their utterance alone."""
        if lengths is None:
            lengths = torch.full((self.batch,), self.frames, device=like.device)
        first = torch.arange(self.number, device=like.device) * self.size - self.window // 2
        keys = first[:, None] + torch.arange(self.ratio * self.size, device=like.device)
        hidden = (keys < 0) | (keys >= lengths[:, None, None])
        return _hide(hidden, like)

    def distances(self, like: Tensor) -> Tensor:
        """(b, ratio b): frames from query to key, inf outside the window, -inf to itself, which no
        span excludes.
        """
        offset = torch.arange(self.ratio * self.size, device=like.device)
        offset = offset - torch.arange(self.size, device=like.device)[:, None]
        before = self.window // 2
        apart = (
            (offset - before)
            .abs()
            .to(like.dtype)
            .masked_fill((offset < 0) | (offset >= self.window), torch.inf)
        )
        return apart.masked_fill(offset == before, -torch.inf)


class _Overlap(torch.autograd.Function):
    """rows ((N + ratio - 1) b, H, D) -> overlapping views (N, H, ratio b, D), one every b rows, in
    portions of N.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, size: int, ratio: int, portion: int) -> tuple[Tensor, ...]:
        ctx.size, ctx.ratio, ctx.portion = size, ratio, portion
        total, heads, dim = rows.shape
        rows = rows.contiguous()
        shape = (total // size - ratio + 1, heads, ratio * size, dim)
        whole = rows.as_strided(
            shape, (size * heads * dim, dim, heads * dim, 1), rows.storage_offset()
        )
        return whole.split(portion)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        _, heads, _, dim = gradients[0].shape
        number = sum(len(gradient) for gradient in gradients)
        rows = gradients[0].new_zeros(number + ctx.ratio - 1, ctx.size, heads, dim)
        for begin, gradient in zip(range(0, number, ctx.portion), gradients, strict=True):
            pieces = gradient.transpose(1, 2).unflatten(1, (ctx.ratio, ctx.size))
            for piece in range(ctx.ratio):
                rows[begin + piece : begin + piece + len(gradient)] += pieces[:, piece]
        return rows.flatten(0, 1), None, None, None


def _check(query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None, window: int) -> None:
    if query.ndim != 4 or not query.shape == key.shape == value.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (query, key, value))
        raise ValueError(f"query, key and value must have one shape (B, H, T, D), got {shapes}")
    if lengths is not None and lengths.shape != query.shape[:1]:
        raise ValueError(f"lengths {tuple(lengths.shape)} must be (B,) = ({query.shape[0]},)")
    if window < 1:
        raise ValueError(f"a window has at least 1 frame, got {window}")


def _clean(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Heads with 0 in the padding, lengths, and (B, 1, T, 1) valid frames; None for both where all
    frames are valid.
    """
    frames = query.shape[2]
    # a GPU would wait
    if lengths is None or lengths.device.type == "cpu" and not bool((lengths < frames).any()):
        return query, key, value, None, None
    valid = valid_mask(lengths, frames)[:, None, :, None]
    return (
        *(x.masked_fill(~valid, 0) for x in (query, key, value)),
        lengths.clamp(max=frames),
        valid,
    )


def _hide(hidden: Tensor, like: Tensor) -> Tensor:
    """hidden (B, N, K) -> (B N, 1, 1, K) to add to scores: so little that exp gives 0.

    Not -inf: a frame of the padding, whose output is dropped, may see nothing else, and would give
    NaN gradients.
    """
    least = max(torch.finfo(like.dtype).min / 4, -1e30)
    return (
        torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        .masked_fill_(hidden, least)
        .flatten(0, 1)[:, None, None]
    )


def _dense_mask(query: Tensor, valid: Tensor | None, window: int) -> Tensor | None:
    """What all T x T products need: (T, T) or (B, 1, 1 or T, T) to add to scores; None: everybody
    sees everybody.
    """
    frames, mask = query.shape[2], None
    if window // 2 < frames - 1 or (window + 1) // 2 < frames:
        # one mask serves many lengths
        size = frames if frames <= _SHORT else -(-frames // _SHORT) * _SHORT
        mask = _band(size, size, window, window // 2, query.dtype, query.device)
        mask = mask if size == frames else mask[:frames, :frames]
    if valid is not None:
        hidden = _hide(~valid[..., 0], query)
        mask = hidden if mask is None else mask + hidden
    return mask


def _band(queries: int, keys: int, *rest: object) -> Tensor:
    """As `_new_band`; small ones are kept."""
    make = _new_band if queries * keys > 1 << 20 or torch.compiler.is_compiling() else _kept_band
    return make(queries, keys, *rest)


def _new_band(
    queries: int, keys: int, window: int, before: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(queries, keys): 0 where query i sees key j, -inf elsewhere; it sees i - before ... i -
    before + window - 1.
    """
    offset = (
        torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None] + before
    )
    hidden = (offset < 0) | (offset >= window)
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


@functools.lru_cache(maxsize=256)
def _kept_band(*rest: object) -> Tensor:
    with torch.inference_mode(False):  # what validation makes must do for training
        return _new_band(*rest)
