"""Self-attention within a window around each frame, in O(T k) time and memory instead of O(T^2).

    frame i sees the frames i - k // 2 ... i + (k + 1) // 2 - 1 of its utterance,  k = window,
    or, looking back only, i - k + 1 ... i

The frames are cut into N blocks of b queries. The keys of a block are b + k - 1 neighbouring
frames, rounded up to a multiple of b: overlapping views of the sequence, never copied. torch's
fused attention then runs over all blocks of all utterances at once, as a batch of B N, with one
mask for the band (b, b + k - 1) and one for the valid keys. Gradients of a key that is in several
blocks are summed block by block.
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
# block size -> largest window for which it was the fastest of the four
_SIZES = {16: 31, 32: 127, 64: 511, 128: sys.maxsize}
_PORTION = 1 << 21  # elements of the keys of the blocks that are computed at once on a CPU
# smaller factors m of a weight count as 0, so that the gradient of log m stays finite
_FAINTEST = 1e-6
# all pairs are cheaper below so many times the keys of a block, and so many frames more
_WORTH_BLOCKS, _WORTH_FRAMES = 1.4, 32
_KEPT_ELEMENTS = 1 << 20  # masks up to this size are cached
_LOWEST = -1e30  # to add to a score so that its exp is 0, within the range of the type


def windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    window: int,
    back: bool = False,
) -> Tensor:
    """softmax(query key^T / sqrt(D)) value over the window of each frame.

    query, key, value (B, H, T, D), lengths (B,) or None for all T frames -> (B, H, T, D). Output is
    0 in the padding, whose input, even NaN, has no effect. An even window has one frame more before
    than after, and with `back` it ends at the frame itself; it is clipped at the utterance's ends.
    """
    _check(query, key, value, lengths, window)
    if not query.numel():
        return query.new_zeros(query.shape)
    query, key, value, lengths, valid = _clean(query, key, value, lengths)
    blocks = Blocks.of(query, window, back)
    if blocks is None:
        mask = _dense_mask(query, valid, window, before(window, back))
        heads = scaled_dot_product_attention(query, key, value, mask)
    else:
        # (B N, H, b, D) queries, (B N, H, ratio b, D) keys, in portions along B N
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
    back: bool = False,
) -> Tensor:
    """As `windowed_attention`, with weights that fade out at a distance: spans (B, H, T), frames.

        m(i, t) = clamp((ramp + spans_i - |i - t|) / ramp, 0, 1), and 1 for t = i
        weights ~ m exp(query key^T / sqrt(D))

    (Adaptive Attention Span, arXiv 1905.07799, equation 5.) Gradients reach `spans` from keys on
    the ramp. Raises `ValueError` for shapes that do not fit and a ramp that is not above 0.
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
    # (B, H, T, D) -> (B H, 1, T, D): each head becomes an utterance of one head, so that its blocks
    # are matrices which torch multiplies without a copy
    query, key, value, spans = (
        x.flatten(0, 1)[:, None] for x in (query * shape[3] ** -0.5, key, value, spans)
    )
    blocks = Blocks.of(query, window, back, always=True)
    portion = blocks.portion(query)
    # m before the clamp is reach - distance: (ramp + spans_i) / ramp of each query (B H N, 1, b,
    # 1), |i - t| / ramp of each pair (b, ratio b), the same in all blocks
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


def streamed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    valid: Tensor,
    window: int,
    spans: Tensor | None = None,
    ramp: float = 1.0,
) -> Tensor:
    """Windows that look back, of the last S of K frames: what the two above give for these.

    query (B, H, S, D), key and value (B, H, K, D), valid (B, K): the keys of a row are without
    gaps, some may be missing on both sides. spans (B, H, S), ramp: as in `adaptive_attention`; None
    for windows of one width. -> (B, H, S, D), with any numbers where no frame is.
    """
    indices = torch.arange(key.shape[2], device=key.device)
    first = key.shape[2] - query.shape[2]
    distances = indices[first:, None] - indices  # (S, K): frames from query to key
    outside = (distances < 0) | (distances >= window)
    if spans is None:
        # a query in the padding sees itself: softmax over nothing is NaN
        visible = ~outside & valid[:, None, :] | (distances == 0)
        return scaled_dot_product_attention(query, key, value, visible[:, None])
    apart = distances.to(spans.dtype).masked_fill(outside, torch.inf)
    apart = apart.masked_fill(distances == 0, -torch.inf)
    reach = ((ramp + spans)[..., None] - apart) / ramp
    hidden = _hide(~valid[:, None], query)
    return _fading(query * query.shape[-1] ** -0.5, key, value, hidden, reach)


def _fading(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, reach: Tensor) -> Tensor:
    """query (N, 1, b, D) scaled, key and value (N, 1, K, D), reach (N, 1, b, K): m unclamped."""
    # m exp(score) = exp(score + log m); where m is 0, -inf afterwards instead of log 0, whose
    # gradient would be NaN. In the type of m, float32 under autocast too: the gradient of log m is
    # a sum of differences that nearly cancel.
    scores = (
        (query @ key.transpose(2, 3))
        .to(reach.dtype)
        .add_(hidden)
        .add_(reach.clamp(_FAINTEST, 1).log())
    )
    weights = torch.softmax(scores.masked_fill_(reach <= _FAINTEST, -torch.inf), dim=-1)
    return weights.to(value.dtype) @ value


def before(window: int, back: bool) -> int:
    """How many frames a window has before its own."""
    return window - 1 if back else window // 2


@dataclass(frozen=True)
class Blocks:
    """How (B, H, T, D) is cut: N = `number` blocks of b = `size` queries and `ratio` * b keys."""

    batch: int
    frames: int
    window: int
    before: int  # frames of a window before its own
    size: int
    number: int
    ratio: int

    @classmethod
    def of(cls, query: Tensor, window: int, back: bool, always: bool = False) -> Blocks | None:
        """None where one product of all frames with all is cheaper."""
        batch, _, frames, _ = query.shape
        if frames <= _SHORT and not always:
            return None
        window = min(window, 2 * frames)  # wider ones see no more
        # keys of a block: b + window - 1 frames, in whole blocks
        size = next(size for size, widest in _SIZES.items() if window <= widest)
        ratio = -(-(size + window - 1) // size)
        if not always and frames < _WORTH_BLOCKS * ratio * size + _WORTH_FRAMES:
            return None
        number = -(-frames // size)
        return cls(batch, frames, window, before(window, back), size, number, ratio)

    def queries(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B N, H, b, D)."""
        return self._rows(x).unflatten(0, (-1, self.size)).transpose(1, 2)

    def portion(self, x: Tensor) -> int:
        """How many blocks to compute at once: on a GPU all, on a CPU what fits a reused buffer.

        The system would allocate and clear larger buffers anew for every call.
        """
        each = x.shape[1] * x.shape[3] * self.size * self.ratio
        return max(1, _PORTION // each) if x.device.type == "cpu" else self.batch * self.number

    def keys(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, H, T, D) -> (B N, H, ratio b, D), in portions along B N.

        The keys of block n begin `before` frames before its queries. In the first and the last
        block of an utterance they reach into its neighbours in the batch, which `hidden` masks.
        """
        # the utterances lie one after the other: only the ends of the batch need padding
        total = (self.ratio - 1) * self.size
        rows = pad(self._rows(x), (0, 0, 0, 0, self.before, total - self.before))
        return _Overlap.apply(rows, self.size, self.ratio, self.portion(x))

    def _rows(self, x: Tensor) -> Tensor:
        """(B, H, T, D) -> (B N b, H, D)."""
        rows = pad(x.transpose(1, 2), (0, 0, 0, 0, 0, self.number * self.size - self.frames))
        return rows.flatten(0, 1)

    def join(self, heads: Sequence[Tensor]) -> Tensor:
        """Portions of (B N, H, b, D) -> (B, H, T, D)."""
        parts = [part.transpose(1, 2) for part in heads]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        rows = rows.reshape(self.batch, self.number * self.size, *rows.shape[2:])
        return rows[:, : self.frames].transpose(1, 2)

    def mask(self, like: Tensor, lengths: Tensor | None) -> Tensor:
        """(B N, 1, b, ratio b) to add to scores: the band, and keys outside of the utterance."""
        band = _band(self.size, self.ratio * self.size, self.window, 0, like.dtype, like.device)
        return band + self.hidden(like, lengths)

    def hidden(self, like: Tensor, lengths: Tensor | None) -> Tensor:
        """(B N, 1, 1, ratio b) to add to scores: keys outside of the utterance alone."""
        if lengths is None:
            lengths = torch.full((self.batch,), self.frames, device=like.device)
        # index within the utterance of each block's first key (N,), and of all of them (N, ratio b)
        first = torch.arange(self.number, device=like.device) * self.size - self.before
        keys = first[:, None] + torch.arange(self.ratio * self.size, device=like.device)
        hidden = (keys < 0) | (keys >= lengths[:, None, None])
        return _hide(hidden, like)

    def distances(self, like: Tensor) -> Tensor:
        """(b, ratio b): frames from query to key; inf outside the window, -inf to itself.

        A frame always sees itself, whatever its span.
        """
        offset = torch.arange(self.ratio * self.size, device=like.device)
        offset = offset - torch.arange(self.size, device=like.device)[:, None]
        # offset 0 is the first key of the window, `before` the query itself
        apart = (
            (offset - self.before)
            .abs()
            .to(like.dtype)
            .masked_fill((offset < 0) | (offset >= self.window), torch.inf)
        )
        return apart.masked_fill(offset == self.before, -torch.inf)


class _Overlap(torch.autograd.Function):
    """rows ((N + ratio - 1) b, H, D) -> views (N, H, ratio b, D), one every b rows, in portions.

    Its gradient adds whole blocks; that of torch's `as_strided` would add element by element.
    """

    @staticmethod
    def forward(ctx, rows: Tensor, size: int, ratio: int, portion: int) -> tuple[Tensor, ...]:
        ctx.size, ctx.ratio, ctx.portion = size, ratio, portion
        total, heads, dim = rows.shape
        rows = rows.contiguous()
        shape = (total // size - ratio + 1, heads, ratio * size, dim)
        # block n, head h, key j, channel d: row n b + j of the sequence
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
            # (N, H, ratio b, D) -> (N, ratio, b, H, D): piece p of block n is piece n + p of `rows`
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
        raise ValueError(f"window must be at least 1 frame, got {window}")


def _clean(
    query: Tensor, key: Tensor, value: Tensor, lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """query, key, value with 0 in the padding, lengths (B,), valid (B, 1, T, 1).

    The last two are None where all frames are known to be valid.
    """
    frames = query.shape[2]
    # on a GPU the answer would have to be waited for, so lengths are taken to matter
    if lengths is None or lengths.device.type == "cpu" and not bool((lengths < frames).any()):
        return query, key, value, None, None
    valid = valid_mask(lengths, frames)[:, None, :, None]
    return (
        *(x.masked_fill(~valid, 0) for x in (query, key, value)),
        lengths.clamp(max=frames),
        valid,
    )


def _hide(hidden: Tensor, like: Tensor) -> Tensor:
    """hidden (B, N, K) -> (B N, 1, 1, K) to add to scores: so low that exp gives 0.

    Not -inf: a frame of the padding may see no other key, and its softmax would have NaN gradients,
    even though its output is dropped.
    """
    # a quarter of the lowest number: a score and the band may be added without overflow
    lowest = max(torch.finfo(like.dtype).min / 4, _LOWEST)
    return (
        torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        .masked_fill_(hidden, lowest)
        .flatten(0, 1)[:, None, None]
    )


def _dense_mask(query: Tensor, valid: Tensor | None, window: int, before: int) -> Tensor | None:
    """(T, T) or (B, 1, 1 or T, T) to add to scores of all pairs; None: all frames see all."""
    frames, mask = query.shape[2], None
    if before < frames - 1 or window - before < frames:
        # rounded up, so that one cached mask serves many lengths
        size = frames if frames <= _SHORT else -(-frames // _SHORT) * _SHORT
        mask = _band(size, size, window, before, query.dtype, query.device)
        mask = mask if size == frames else mask[:frames, :frames]
    if valid is not None:
        hidden = _hide(~valid[..., 0], query)
        mask = hidden if mask is None else mask + hidden
    return mask


def _band(queries: int, keys: int, *rest: object) -> Tensor:
    """As `_new_band`; small ones are cached."""
    make = (
        _new_band
        if queries * keys > _KEPT_ELEMENTS or torch.compiler.is_compiling()
        else _kept_band
    )
    return make(queries, keys, *rest)


def _new_band(
    queries: int, keys: int, window: int, before: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(queries, keys): 0 where query i sees key j, -inf elsewhere.

    It sees i - before ... i - before + window - 1.
    """
    offset = (
        torch.arange(keys, device=device) - torch.arange(queries, device=device)[:, None] + before
    )
    hidden = (offset < 0) | (offset >= window)
    return torch.zeros(queries, keys, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)


@functools.lru_cache(maxsize=256)
def _kept_band(*rest: object) -> Tensor:
    # a tensor made in inference mode, by validation, could not be used in training
    with torch.inference_mode(False):
        return _new_band(*rest)
