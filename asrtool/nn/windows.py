"""Self-attention within a window around each frame, in O(T k) time and memory instead of O(T^2).

    frame i sees the frames i - k // 2 ... i + (k + 1) // 2 - 1 of its utterance,  k = window,
    or, looking back only, i - k + 1 ... i

The frames are cut into N blocks of b queries. The keys of a block are the b + k - 1 frames that its
queries see, rounded up to a multiple of b: overlapping views of the sequence, which are never
copied. torch's fused attention runs over all blocks of all utterances at once, as a batch of B N,
with one mask for the band (b, b + k - 1) and one for the valid keys. The gradients of a key that
several blocks share are summed block by block.
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

_SHORT = 128  # up to so many frames, blocks cost more than they save
# block size -> largest window for which it was the fastest of the four
_SIZES = {16: 31, 32: 127, 64: 511, 128: sys.maxsize}
_PORTION = 1 << 21  # on a CPU, elements of the keys of the blocks that are computed at once
# factors m below this count as 0, so that the gradient of log m stays finite
_FAINTEST = 1e-6
# blocks pay off from _WORTH_BLOCKS times the keys of a block on, plus _WORTH_FRAMES frames
_WORTH_BLOCKS, _WORTH_FRAMES = 1.4, 32
_KEPT_ELEMENTS = 1 << 20  # masks of up to so many elements are cached
_LOWEST = -1e30  # added to a score, it makes the weight 0, and is still in the type's range


def windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lengths: Tensor | None,
    window: int,
    back: bool = False,
) -> Tensor:
    """softmax(query key^T / sqrt(D)) value, over the window of each frame.

    query, key, value (B, H, T, D), lengths (B,) or None for all T frames -> (B, H, T, D). The
    output is 0 in the padding, whose input has no effect, even if it is NaN. An even window has one
    frame more before than after; with `back` it ends at the frame itself. It is clipped at the ends
    of the utterance. Raises `ValueError` for shapes that do not fit.
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
    """`windowed_attention` with weights that fade out beyond a span; spans (B, H, T) in frames.

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
    # (B, H, T, D) -> (B H, 1, T, D): each head becomes an utterance with one head, so that its
    # blocks are matrices which torch multiplies without a copy. The fused kernel of
    # `windowed_attention` is no option: on a CPU it has no gradient for the additive log m.
    query, key, value, spans = (
        x.flatten(0, 1)[:, None] for x in (query * shape[3] ** -0.5, key, value, spans)
    )
    blocks = Blocks.of(query, window, back, always=True)
    portion = blocks.portion(query)
    # m before the clamp is reach - distance. reach: (ramp + spans_i) / ramp of each query
    # (B H N, 1, b, 1); distance: |i - t| / ramp of each pair (b, ratio b), the same in all blocks.
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
    """Windows that look back, for the last S of K frames: equal to the two functions above there.

    query (B, H, S, D), key and value (B, H, K, D), valid (B, K) -> (B, H, S, D); the padding may
    hold any numbers. The valid keys of a row are contiguous, with padding on either side. spans
    (B, H, S) and ramp as in `adaptive_attention`; None for windows of one width.
    """
    indices = torch.arange(key.shape[2], device=key.device)
    first = key.shape[2] - query.shape[2]
    # (S, K): frames from query to key, by index, since the frames of a row have no gaps
    distances = indices[first:, None] - indices
    outside = (distances < 0) | (distances >= window)
    if spans is None:
        # a query in the padding sees itself: softmax over no key would be NaN
        visible = ~outside & valid[:, None, :] | (distances == 0)
        return scaled_dot_product_attention(query, key, value, visible[:, None])
    apart = distances.to(spans.dtype).masked_fill(outside, torch.inf)
    apart = apart.masked_fill(distances == 0, -torch.inf)
    reach = ((ramp + spans)[..., None] - apart) / ramp
    hidden = _hide(~valid[:, None], query)
    return _fading(query * query.shape[-1] ** -0.5, key, value, hidden, reach)


def _fading(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, reach: Tensor) -> Tensor:
    """softmax of m exp(score), times value -> (N, 1, b, D).

    query (N, 1, b, D) scaled, key and value (N, 1, K, D), hidden (N, 1, 1, K), reach (N, 1, b, K):
    m before the clamp.
    """
    # m exp(score) = exp(score + log m). If m is 0, the score is set to -inf afterwards: log 0 would
    # have a NaN gradient. In the type of m, float32 also under autocast: the gradient of log m is a
    # sum of differences that nearly cancel.
    scores = (
        (query @ key.transpose(2, 3))
        .to(reach.dtype)
        .add_(hidden)
        .add_(reach.clamp(_FAINTEST, 1).log())
    )
    weights = torch.softmax(scores.masked_fill_(reach <= _FAINTEST, -torch.inf), dim=-1)
    return weights.to(value.dtype) @ value


def before(window: int, back: bool) -> int:
    """The number of frames in a window before its own frame."""
    return window - 1 if back else window // 2


@dataclass(frozen=True)
class Blocks:
    """The division of (B, H, T, D) into N = `number` blocks of b = `size` queries and `ratio` * b
    keys.
    """

    batch: int
    frames: int
    window: int
    before: int  # frames of a window before its own
    size: int
    number: int
    ratio: int

    @classmethod
    def of(cls, query: Tensor, window: int, back: bool, always: bool = False) -> Blocks | None:
        """The division for a query (B, H, T, D); None if a product of all frames with all is
        cheaper.
        """
        batch, _, frames, _ = query.shape
        if frames <= _SHORT and not always:
            return None
        window = min(window, 2 * frames)  # a wider one sees no more
        # the keys of a block are b + window - 1 frames, rounded up to whole blocks
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
        """The number of blocks to compute at once: all on a GPU; on a CPU as many as fit into a
        reused buffer, because the system allocates and clears larger ones anew for every call.
        """
        each = x.shape[1] * x.shape[3] * self.size * self.ratio
        return max(1, _PORTION // each) if x.device.type == "cpu" else self.batch * self.number

    def keys(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, H, T, D) -> (B N, H, ratio b, D), in portions along B N.

        The keys of block n begin `before` frames before its queries. In the first and last blocks
        of an utterance, they reach into its neighbours in the batch, which `hidden` masks.
        """
        return _Overlap.apply(self._rows(x), self.before, self.size, self.ratio, self.portion(x))

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
        """(B N, 1, b, ratio b) to add to scores: hides keys outside the band or the utterance."""
        band = _band(self.size, self.ratio * self.size, self.window, 0, like.dtype, like.device)
        return band + self.hidden(like, lengths)

    def hidden(self, like: Tensor, lengths: Tensor | None) -> Tensor:
        """(B N, 1, 1, ratio b) to add to scores: hides keys outside the utterance only."""
        if lengths is None:
            lengths = torch.full((self.batch,), self.frames, device=like.device)
        # index within the utterance of the first key of each block (N,), and of all its keys
        # (N, ratio b)
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
    """rows (N b, H, D) -> overlapping views (N, H, ratio b, D), one every b rows, in portions.

    The first begins `before` rows before the sequence, which are zeros, like those after its end.
    The gradient adds whole blocks; that of torch's `as_strided` would add element by element.
    """

    @staticmethod
    def forward(
        ctx, rows: Tensor, before: int, size: int, ratio: int, portion: int
    ) -> tuple[Tensor, ...]:
        ctx.before, ctx.size, ctx.ratio, ctx.portion = before, size, ratio, portion
        total, heads, dim = rows.shape
        rows, views = rows.contiguous(), []
        for start in range(0, total, portion * size):
            blocks = min(portion, (total - start) // size)
            first = start - before
            end = first + (blocks + ratio - 1) * size
            # the utterances lie one after the other, so only the ends of the batch need padding:
            # other portions are no copies
            piece = rows[max(first, 0) : min(end, total)]
            if first < 0 or end > total:
                piece = pad(piece, (0, 0, 0, 0, max(-first, 0), max(end - total, 0)))
            # block n, head h, key j, channel d: row n b + j of the piece
            shape = (blocks, heads, ratio * size, dim)
            strides = (size * heads * dim, dim, heads * dim, 1)
            views.append(piece.as_strided(shape, strides, piece.storage_offset()))
        return tuple(views)

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        _, heads, _, dim = gradients[0].shape
        number = sum(len(gradient) for gradient in gradients)
        rows = gradients[0].new_zeros(number + ctx.ratio - 1, ctx.size, heads, dim)
        for begin, gradient in zip(range(0, number, ctx.portion), gradients, strict=True):
            # (N, H, ratio b, D) -> (N, ratio, b, H, D). Piece p of block n is piece n + p of
            # `rows`, so `ratio` additions of contiguous pieces sum all overlaps.
            pieces = gradient.transpose(1, 2).unflatten(1, (ctx.ratio, ctx.size))
            for piece in range(ctx.ratio):
                rows[begin + piece : begin + piece + len(gradient)] += pieces[:, piece]
        rows = rows.flatten(0, 1)[ctx.before : ctx.before + number * ctx.size]
        return rows, None, None, None, None


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

    The last two are None if all frames are known to be valid.
    """
    frames = query.shape[2]
    # asking a GPU whether any frame is padding would wait for it, so there the answer is yes
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

    Not -inf: a frame of the padding may see no key at all, and its softmax would have NaN
    gradients, even though its output is dropped.
    """
    # a quarter of the lowest number, so that adding a score and the band does not overflow
    lowest = max(torch.finfo(like.dtype).min / 4, _LOWEST)
    return (
        torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
        .masked_fill_(hidden, lowest)
        .flatten(0, 1)[:, None, None]
    )


def _dense_mask(query: Tensor, valid: Tensor | None, window: int, before: int) -> Tensor | None:
    """(T, T) or (B, 1, 1 or T, T) to add to the scores of all pairs; None: all frames see all."""
    frames, mask = query.shape[2], None
    if before < frames - 1 or window - before < frames:
        # the size is rounded up, so that one cached mask serves many lengths
        size = frames if frames <= _SHORT else -(-frames // _SHORT) * _SHORT
        mask = _band(size, size, window, before, query.dtype, query.device)
        mask = mask if size == frames else mask[:frames, :frames]
    if valid is not None:
        hidden = _hide(~valid[..., 0], query)
        mask = hidden if mask is None else mask + hidden
    return mask


def _band(queries: int, keys: int, *rest: object) -> Tensor:
    """`_new_band`, with a cache of small ones."""
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
    # autograd rejects tensors created in inference mode, and a search may ask for a band first
    with torch.inference_mode(False):
        return _new_band(*rest)
