"""Unimodal aggregation (arXiv 2309.08150): one frame for each rise and fall of a learned weight.

    alpha_t = sigmoid(w^T h_t + b)                                                             (1)
    a frame tau is a valley if  alpha_tau <= alpha_{tau-1}  and  alpha_tau < alpha_{tau+1}     (2)
    f_i = sum alpha_t h_t / sum alpha_t,   t = tau_i ... tau_{i+1}                             (3)

tau_0 = 0 is the first frame, and the last segment ends with the utterance. A valley belongs to both
of its segments. An utterance has one frame for each segment, which CTC behind it reads as a token
or as blank. The segments have no gradient, their weights do: the loss behind them moves the
valleys. No intermediate head and no phases of training are needed.

The paper does not say what a valley of several equal weights is. Here its last frame is the valley,
so that constant weights make a single segment. The published code lets a segment end one frame
after the next valley; (3) is the paper's. Whether a frame is a valley depends on the next one, and
the mean (3) on all frames up to the next valley, so that this downsampler does not stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asrtool.downsamplers.base import DOWNSAMPLERS, Downsampler
from asrtool.downsamplers.keyframe import indices_of
from asrtool.types import DownsamplerOutput, Padded


@dataclass(frozen=True, kw_only=True)
class UmaConfig:
    """Unimodal aggregation: before a layer, not as a stem."""


@DOWNSAMPLERS.register("uma", UmaConfig)
class Uma(Downsampler):
    """Frames (B, T, D_in) -> (B, M, D_out), M: the largest number of segments of a row.

    Taps, both with the lengths of the input: `uma_weights` (B, T), alpha; `key_frames` (B, T), 1 at
    the first frame of a segment, whose position is that of the segment.
    """

    factor = 1

    def __init__(self, config: UmaConfig, dim_in: int, dim_out: int, vocab_size: int) -> None:
        super().__init__()
        self.weight = nn.Linear(dim_in, 1)
        self.out_proj = nn.Identity() if dim_in == dim_out else nn.Linear(dim_in, dim_out)

    def forward(self, inputs: Padded, positions: Tensor | None = None) -> DownsamplerOutput:
        lengths, valid = inputs.lengths, inputs.mask
        x = inputs.data.masked_fill(~valid[:, :, None], 0)
        # The projection, too, in float32: bf16 has so few numbers that neighbours would often be
        # equal, and a model trained in it would be cut elsewhere in float32.
        with torch.autocast(x.device.type, enabled=False):
            alpha = self.weight(x.to(self.weight.weight.dtype)).squeeze(2).sigmoid()
        alpha = alpha.masked_fill(~valid, 0)
        starts = segment_starts(alpha.detach(), valid)
        # A GPU would be waited for to learn how many segments there are. Valleys are two frames
        # apart or more, so there is room for all in half of the columns.
        asks = x.device.type == "cpu" or not self.training
        at, counts = indices_of(starts, least=1, most=None if asks else x.shape[1] // 2 + 1)
        at = at.clamp(min=0)
        frames = Padded(self.out_proj(aggregated(x, alpha, starts, at, counts)), counts)
        frames = Padded(frames.data.masked_fill(~frames.mask[:, :, None], 0), counts)
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        taps = {
            "uma_weights": Padded(alpha, lengths),
            "key_frames": Padded(starts.to(x.dtype), lengths),
        }
        return DownsamplerOutput(frames=frames, positions=positions.gather(1, at), taps=taps)


def segment_starts(alpha: Tensor, valid: Tensor) -> Tensor:
    """(2): alpha, valid (B, T) -> (B, T) bool, the first frames of all segments."""
    falls = alpha[:, 1:] <= alpha[:, :-1]
    rises = (alpha[:, 1:] > alpha[:, :-1]) & valid[:, 1:]
    starts = valid.clone()  # of column 0: an utterance's first frame
    starts[:, 1:] = nn.functional.pad(falls[:, :-1] & rises[:, 1:], (0, 1))[:, : alpha.shape[1] - 1]
    return starts & valid


def aggregated(x: Tensor, alpha: Tensor, starts: Tensor, at: Tensor, counts: Tensor) -> Tensor:
    """(3): x (B, T, D), alpha, starts (B, T), at (B, M), counts (B,) -> (B, M, D)."""
    # (B, T, D + 1): the last channel sums to the denominator
    weighted = torch.cat([x * alpha[:, :, None], alpha[:, :, None]], -1)  # float32 or float64
    segment = (starts.cumsum(1) - 1).clamp(min=0, max=at.shape[1] - 1)  # (B, T): of each frame
    sums = weighted.new_zeros(*at.shape, weighted.shape[2])
    sums = sums.scatter_add(1, segment[:, :, None].expand_as(weighted), weighted)
    # the valley that ends a segment is the first frame of the next one
    following = torch.arange(at.shape[1], device=at.device) + 1 < counts[:, None]
    ends = at.roll(-1, 1)[:, :, None].expand(-1, -1, weighted.shape[2])
    sums = sums + weighted.gather(1, ends).masked_fill(~following[:, :, None], 0)
    means = sums[..., :-1] / sums[..., -1:].clamp(min=torch.finfo(sums.dtype).tiny)
    return means.to(x.dtype)
