"""A linear stem that keeps every frame: y = W norm(x) + b.

It is for frames that are encoded already, such as those of a pre-trained front end. Their channels
differ in scale by orders of magnitude, hence the layer norm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asrtool.downsamplers.base import DOWNSAMPLERS, StreamingDownsampler
from asrtool.nn.rows import PerRow
from asrtool.types import DownsamplerOutput, Padded


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """A linear layer that keeps every frame, for frames of a front end."""

    norm: bool = True  # layer norm before it


@dataclass(frozen=True)
class LinearCache(PerRow):
    """emitted (B,): the frames so far, which number those of the next piece."""

    emitted: Tensor


@DOWNSAMPLERS.register("linear", LinearConfig)
class Linear(StreamingDownsampler):
    """Frames (B, T, D_in) -> (B, T, D_out)."""

    factor = 1
    uniform = True
    causal = True  # no frame sees another

    def __init__(self, config: LinearConfig, dim_in: int, dim_out: int, vocab_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim_in) if config.norm else nn.Identity()
        self.proj = nn.Linear(dim_in, dim_out)

    def init_cache(self, batch_size: int) -> LinearCache:
        return LinearCache(self.proj.weight.new_zeros(batch_size, dtype=torch.int64))

    def forward_chunk(
        self,
        inputs: Padded,
        positions: Tensor | None,
        cache: LinearCache,
    ) -> tuple[DownsamplerOutput, LinearCache]:
        outside = ~inputs.mask[:, :, None]
        x = self.proj(self.norm(inputs.data.masked_fill(outside, 0))).masked_fill(outside, 0)
        if positions is None:
            positions = cache.emitted[:, None] + torch.arange(x.shape[1], device=x.device)
        output = DownsamplerOutput(frames=Padded(x, inputs.lengths), positions=positions)
        return output, LinearCache(cache.emitted + inputs.lengths)
