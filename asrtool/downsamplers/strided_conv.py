"""Strided convolution between encoder layers: progressive downsampling (arXiv 2109.01163).

The convolution module of the Conformer with a stride, added to the mean of the frames:

    y_s = mean(x_{g(s)}) + C(norm(x))_s        g(s) = factor s ... factor s + factor - 1

C is pointwise, gated linear unit, depthwise convolution with stride `factor`, layer norm, SiLU,
pointwise. Efficient Conformer puts the stride into the convolution module of a layer. Here it is a
module of its own before the next layer, so any encoder with downsamplers can use it. The depthwise
convolution is centred at frame factor s. If causal, it ends at the last frame of g(s): it looks
back only, yet sees every frame. The last group of an utterance may be incomplete: the mean is over
the frames that exist, and the convolution sees zeros in place of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from asrtool.downsamplers.base import DOWNSAMPLERS, StreamingDownsampler
from asrtool.nn.convolution import ConvolutionModule
from asrtool.nn.rows import PerRow
from asrtool.registry import bounded
from asrtool.types import DownsamplerOutput, Padded, both


@dataclass(frozen=True, kw_only=True)
class StridedConvConfig:
    """A strided convolution module, added to the mean of the frames: before a layer, no stem."""

    factor: int = bounded(2, least=1)  # input frames per output frame
    kernel: int = bounded(15, least=1)  # frames of the depthwise convolution
    causal: bool = False  # no look-ahead

    def __post_init__(self) -> None:
        if self.factor < 2:
            raise ValueError(f"factor must be at least 2, got {self.factor}")
        if self.kernel < 1:
            raise ValueError(f"kernel must be at least 1 frame, got {self.kernel}")


@dataclass(frozen=True)
class StridedConvCache(PerRow):
    """The state between two pieces.

    convolution: left context (B, kernel - 1, D); emitted: output frames so far (B,). Groups lie
    within one piece, so that no frames are kept for the mean.
    """

    convolution: Tensor
    emitted: Tensor


@DOWNSAMPLERS.register("strided_conv", StridedConvConfig)
class StridedConv(StreamingDownsampler):
    """Frames (B, T, D_in) -> (B, ceil(T / factor), D_out)."""

    uniform = True

    def __init__(
        self, config: StridedConvConfig, dim_in: int, dim_out: int, vocab_size: int
    ) -> None:
        super().__init__()
        self.factor = config.factor
        self.causal = config.causal
        self.norm = nn.LayerNorm(dim_in)
        self.convolution = ConvolutionModule(
            dim_in, config.kernel, config.causal, stride=config.factor
        )
        self.out_proj = nn.Identity() if dim_in == dim_out else nn.Linear(dim_in, dim_out)

    def init_cache(self, batch_size: int) -> StridedConvCache:
        zeros = self.norm.weight.new_zeros
        return StridedConvCache(
            self.convolution.init_cache(batch_size), zeros(batch_size, dtype=torch.int64)
        )

    def forward(self, inputs: Padded, positions: Tensor | None = None) -> DownsamplerOutput:
        output, _ = self.forward_chunk(inputs, positions, None)
        return output

    def forward_chunk(
        self,
        inputs: Padded,
        positions: Tensor | None,
        cache: StridedConvCache | None,
    ) -> tuple[DownsamplerOutput, StridedConvCache | None]:
        x, valid = inputs.data.masked_fill(~inputs.mask[:, :, None], 0), inputs.mask
        # (B, T, D + 1): the last channel is 1 for valid frames, so its sum counts the frames of a
        # group
        counted = torch.cat([x, valid[:, :, None].to(x.dtype)], dim=-1)
        counted = pad(counted, (0, 0, 0, -counted.shape[1] % self.factor))
        sums = counted.unfold(1, self.factor, self.factor).sum(dim=-1)  # (B, S, D + 1)
        y, history = self.convolution(self.norm(x), valid, cache and cache.convolution)
        data = self.out_proj(sums[..., :-1] / sums[..., -1:].clamp(min=1) + y)
        lengths = both(lambda n: (n + self.factor - 1) // self.factor, inputs.lengths)
        kept = Padded(data, lengths)
        kept = Padded(data.masked_fill(~kept.mask[:, :, None], 0), lengths)
        emitted = 0 if cache is None else cache.emitted[:, None]
        at = emitted + torch.arange(data.shape[1], device=x.device).expand(data.shape[:2])
        output = DownsamplerOutput(
            frames=kept, positions=at if positions is None else positions[:, :: self.factor]
        )
        return output, None if cache is None else StridedConvCache(history, cache.emitted + lengths)
