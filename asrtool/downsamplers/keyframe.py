"""Key frames (arXiv 2510.10453): only frames where an intermediate CTC head reads a new token.

    a_t   = argmax over v of p_t(v),  p = softmax(head(h))        head(h) is the tap `inter_ctc`
    key_t = a_t is not blank, and t = 0 or a_t != a_{t-1}         first frame of each run      (1)
    f_t   = sum over |i| <= radius of w_i(t) h_{t+i}              frame fusion                 (2)

Frames are fused before the others are dropped. An utterance keeps as many frames as its best CTC
path has tokens, about one in eight. The selection is that of the preceding paper (arXiv
2310.14954), which keeps a chunk of five frames around each (`keep: 5`). It has no gradient: the
loss on `inter_ctc` trains the head. Kept frames keep their positions. Fusion in (2) is one of

    attention   w_i(t) = softmax over i of (u^T tanh(W h_{t+i}) + b_i)
    weighted    w_i = softmax of one number for each i
    concat      f_t = W [h_{t-radius}; ...; h_{t+radius}] + b
    none        f_t = h_t

The paper speaks of weights over a frame and its two neighbours, and gives no formula. Here, the
first three start near h_t. A neighbour outside the utterance has no weight; `concat` takes the
frame itself instead. An utterance without a key frame keeps its frame 0.

How many frames are kept is known after the encoder's first layers only, and asking a GPU for it
would stop the training step there. So in training on one, at most `ROOM` times as many frames stay
as the longest text of the batch has tokens (a trained head finds about one for each): of more,
evenly spread ones do, and the tap `overflow` counts the others. Recognition keeps all.

The paper's fusion looks
one frame ahead. `causal: true` fuses t - radius ... t, and always keeps frame 0, because only at
its end is it known whether an utterance has a key frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from asrtool.downsamplers.base import DOWNSAMPLERS, StreamingDownsampler
from asrtool.nn.convolution import continue_from
from asrtool.nn.rows import PerRow
from asrtool.registry import bounded
from asrtool.types import DownsamplerOutput, Padded, on_host

# initial b_0 of `attention`: the frame itself has e^2 = 7.4 times the weight of a neighbour
CENTRE_BIAS = 2.0
CENTRE_WEIGHT = 0.8  # initial w_0 of `weighted`
BLANK = 0
ROOM = 3  # kept frames for each token of the longest text, where their number is not known


@dataclass(frozen=True, kw_only=True)
class KeyframeConfig:
    """Intermediate CTC, key frames, frame fusion: before a layer, not as a stem."""

    fusion: Literal["attention", "weighted", "concat", "none"] = "attention"
    radius: int = bounded(1, least=0)  # frames fused on either side; causal: before
    drop: bool = True  # false: every frame stays, and is fused
    keep: int = 1  # frames kept around each key frame, from t - keep // 2 on
    causal: bool = False  # no look-ahead

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise ValueError(f"radius must be at least 0 frames, got {self.radius}")
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1 frame, got {self.keep}")
        if self.causal and self.keep > 1:
            raise ValueError(
                f"keep: {self.keep} looks ahead, which causal: true rules out; use keep: 1"
            )


@dataclass(frozen=True)
class KeyframeCache(PerRow):
    """The last frames (B, radius, D), which of them are valid (B, radius), the token of the last
    one (B, 1), and the number of frames so far (B,).
    """

    frames: Tensor
    valid: Tensor
    token: Tensor
    seen: Tensor


@DOWNSAMPLERS.register("keyframe", KeyframeConfig)
class Keyframe(StreamingDownsampler):
    """Frames (B, T, D_in) -> (B, M, D_out), M: the largest number of frames that a row keeps.

    Taps with the lengths of the input: `inter_ctc` (B, T, V) logits; `key_frames` (B, T), 1 at a
    key frame. In training, `overflow` (B, 1): the number of frames left out for lack of room.
    """

    factor = 1

    def __init__(self, config: KeyframeConfig, dim_in: int, dim_out: int, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.causal = config.causal
        self.head = nn.Linear(dim_in, vocab_size)
        offsets = range(-config.radius, 1 if config.causal else config.radius + 1)
        self.fusion = (
            FrameFusion(dim_in, config.fusion, tuple(offsets)) if config.fusion != "none" else None
        )
        self.out_proj = nn.Identity() if dim_in == dim_out else nn.Linear(dim_in, dim_out)

    def init_cache(self, batch_size: int) -> KeyframeCache:
        zeros, radius = self.head.weight.new_zeros, self.config.radius
        return KeyframeCache(
            zeros(batch_size, radius, self.head.in_features),
            zeros(batch_size, radius, dtype=torch.bool),
            torch.full((batch_size, 1), BLANK, device=self.head.weight.device),
            zeros(batch_size, dtype=torch.int64),
        )

    def forward_chunk(
        self,
        inputs: Padded,
        positions: Tensor | None,
        cache: KeyframeCache,
    ) -> tuple[DownsamplerOutput, KeyframeCache]:
        lengths, valid = inputs.lengths, inputs.mask
        x = inputs.data.masked_fill(~valid[:, :, None], 0)
        logits = self.head(x)
        # (B, 1 + T): (1) compares neighbours, so the token of the frame before this piece comes
        # first. argmax has no gradient: the loss on `inter_ctc` alone trains the head.
        tokens, last = continue_from(logits.detach().argmax(-1), cache.token, lengths)
        key = run_starts(tokens) & valid
        # at (B, M): indices of the kept frames, padded with 0. M is at least 1, because the layers
        # need a frame to run on; if a row keeps none, its count of 0 masks that frame.
        kept = self._kept(key, valid, cache.seen)
        at, counts = indices_of(kept, least=1, most=self._room(kept))
        at = at.clamp(min=0)
        # (B, radius + T, D): after the cached frames, frame t of this piece is at t + radius
        joined, history = continue_from(x, cache.frames.to(x.dtype), lengths)
        there, known = continue_from(valid, cache.valid, lengths)
        inner = at + self.config.radius
        picked = take(joined, inner) if self.fusion is None else self.fusion(joined, there, inner)
        frames = Padded(self.out_proj(picked), counts)  # (B, M, D_out)
        frames = Padded(frames.data.masked_fill(~frames.mask[:, :, None], 0), counts)
        if positions is None:
            positions = cache.seen[:, None] + torch.arange(x.shape[1], device=x.device)
        taps = {
            "inter_ctc": Padded(logits, lengths),
            "key_frames": Padded(key.to(x.dtype), lengths),
        }
        if self.training:
            overflow = kept.sum(dim=1, keepdim=True) - counts[:, None]
            taps["overflow"] = Padded(overflow.to(x.dtype), torch.ones_like(counts))
        output = DownsamplerOutput(frames=frames, positions=positions.gather(1, at), taps=taps)
        return output, KeyframeCache(history, known, last, cache.seen + lengths)

    def _room(self, kept: Tensor) -> int | None:
        """The number of columns for kept frames (B, T); None: as many as there are."""
        if kept.device.type == "cpu" or not self.training or self.longest_text is None:
            return None
        if not self.config.drop:
            return kept.shape[1]
        return min(kept.shape[1], ROOM * (self.longest_text + 1) * self.config.keep)

    def _kept(self, key: Tensor, valid: Tensor, seen: Tensor) -> Tensor:
        """key, valid (B, T) bool, seen (B,): frames before them -> the frames to keep (B, T)."""
        if not self.config.drop:
            return valid
        if self.causal:
            # A stream cannot know yet whether the utterance will have a key frame, so it always
            # keeps the first frame, in case there is none.
            first = (seen == 0)[:, None] & valid
            first[:, 1:] = False
            return key | first
        return widened(with_fallback(key, valid), self.config.keep) & valid


class FrameFusion(nn.Module):
    """(2): a weighted sum of a frame and its neighbours at `offsets`, or a linear map of them."""

    def __init__(self, dim: int, kind: str, offsets: tuple[int, ...]) -> None:
        super().__init__()
        self.kind = kind
        self.offsets = offsets
        centre = self.centre = offsets.index(0)
        if kind == "concat":
            self.proj = nn.Linear(len(offsets) * dim, dim)
            # initially f_t = h_t: identity for the frame itself, 0 for its neighbours
            with torch.no_grad():
                self.proj.weight.zero_()[:, centre * dim : (centre + 1) * dim].fill_diagonal_(1.0)
                self.proj.bias.zero_()
            return
        if kind == "attention":
            self.proj = nn.Linear(dim, dim)
            self.score = nn.Linear(dim, 1, bias=False)
            start = torch.zeros(len(offsets))
            start[centre] = CENTRE_BIAS
        else:
            others = max(len(offsets) - 1, 1)
            start = torch.full((len(offsets),), (1 - CENTRE_WEIGHT) / others)
            start[centre] = CENTRE_WEIGHT
            start = start.log()  # the softmax of log-weights is the weights
        self.bias = nn.Parameter(start)

    def forward(self, frames: Tensor, valid: Tensor, at: Tensor) -> Tensor:
        """frames (B, S, D), valid (B, S), at (B, M): indices of the frames to fuse -> (B, M, D)."""
        # index (B, M, n): the n neighbours of each frame; exists: whether a neighbour is a valid
        # frame. One that is not gets no weight, and for `concat` is replaced by the frame itself.
        index = at[:, :, None] + torch.arange(
            self.offsets[0], self.offsets[-1] + 1, device=at.device
        )
        inside = index.clamp(0, frames.shape[1] - 1)
        exists = valid.gather(1, inside.flatten(1)).view_as(inside) & (inside == index)
        # also in the padding of `at`: softmax over no neighbour would be NaN
        exists[:, :, self.centre] = True
        inside = torch.where(exists, inside, at[:, :, None])
        neighbours = [take(frames, inside[:, :, n]) for n in range(len(self.offsets))]
        if self.kind == "concat":
            return self.proj(torch.cat(neighbours, -1))
        scores = self.bias.expand(inside.shape)
        if self.kind == "attention":
            # u^T tanh(W h) once per frame (B, S), then gathered for the neighbours (B, M, n)
            energies = self.score(self.proj(frames).tanh()).squeeze(2)
            scores = scores + energies.gather(1, inside.flatten(1)).view_as(inside)
        weights = scores.float().masked_fill(~exists, -torch.inf).softmax(-1).to(frames.dtype)
        return sum(weights[:, :, n, None] * frame for n, frame in enumerate(neighbours))


def select_keyframes(ids: Tensor, lengths: Tensor, blank: int = 0) -> tuple[Tensor, Tensor]:
    """ids (B, T), lengths (B,) -> indices (B, M) of key frames padded with -1, counts (B,).

    ids: the most probable token of each frame. Key frames are the first frames of all runs that are
    not blank, or frame 0 if there are none; an utterance without frames has none. M is the largest
    count. Raises `ValueError` for shapes and lengths that do not fit.
    """
    if ids.dim() != 2 or lengths.shape != ids.shape[:1]:
        shapes = f"{tuple(ids.shape)} and {tuple(lengths.shape)}"
        raise ValueError(f"select_keyframes: expected ids (B, T) and lengths (B,), got {shapes}")
    known = on_host(lengths)
    if known is not None and not bool(((known >= 0) & (known <= ids.shape[1])).all()):
        raise ValueError(
            f"select_keyframes: lengths {known.tolist()} do not fit {ids.shape[1]} frames"
        )
    valid = Padded(ids, lengths.to(ids.device)).mask
    before = torch.full_like(ids[:, :1] if ids.shape[1] else lengths[:, None], blank)
    return indices_of(with_fallback(run_starts(torch.cat([before, ids], 1), blank) & valid, valid))


def run_starts(tokens: Tensor, blank: int = BLANK) -> Tensor:
    """(1): tokens (B, 1 + T) with the preceding one first -> (B, T) bool: first frames of runs."""
    return (tokens[:, 1:] != blank) & (tokens[:, 1:] != tokens[:, :-1])


def with_fallback(key: Tensor, valid: Tensor) -> Tensor:
    """Key frames (B, T), with frame 0 for an utterance that has none."""
    first = valid & ~key.any(dim=1, keepdim=True)
    first[:, 1:] = False
    return key | first


def widened(kept: Tensor, size: int) -> Tensor:
    """kept (B, T) with the frames t - size // 2 ... t + (size - 1) // 2 around each."""
    frames = kept.shape[1]
    # dilation: the OR of `size` shifted copies
    around = nn.functional.pad(kept, ((size + 1) // 2 - 1, size // 2))
    return torch.stack([around[:, shift : shift + frames] for shift in range(size)]).any(dim=0)


def indices_of(kept: Tensor, least: int = 0, most: int | None = None) -> tuple[Tensor, Tensor]:
    """kept (B, T) bool -> indices (B, M) in order, padded with -1, and counts (B,).

    M is the largest count, but at least `least`. With `most`, M is that: of a row that has more,
    evenly spread ones are kept. Without it, a GPU is waited for.
    """
    counts = kept.sum(dim=1)
    rank = kept.cumsum(dim=1)  # 1 ... count
    if most is None:
        most = max(int(counts.max()) if len(counts) else 0, least)
    else:
        most = max(most, least)
        # of n > M frames, number r stays if r M / n reaches another whole number than (r - 1) M / n
        more = counts.clamp(min=most)[:, None]
        kept = kept & (rank * most // more > (rank - 1) * most // more)
        rank, counts = kept.cumsum(dim=1), counts.clamp(max=most)
    # a scatter instead of a loop over rows: each kept frame writes its index to column `rank`, all
    # others to column `most`, which is cut off
    column = torch.where(kept, rank - 1, most)
    steps = torch.arange(kept.shape[1], device=kept.device).expand_as(column)
    indices = torch.full((len(kept), most + 1), -1, device=kept.device)
    return indices.scatter_(1, column, steps)[:, :most], counts


def take(frames: Tensor, at: Tensor) -> Tensor:
    """Frames (B, S, D) at indices (B, M) -> (B, M, D)."""
    return frames.gather(1, at[:, :, None].expand(-1, -1, frames.shape[2]))
