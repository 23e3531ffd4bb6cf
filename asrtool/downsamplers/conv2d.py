"""Strided 2-D convolutions over time and frequency: the usual stem of ASR encoders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from asrtool.downsamplers.base import DOWNSAMPLERS, StreamingDownsampler
from asrtool.nn.convolution import continue_from
from asrtool.types import DownsamplerOutput, Padded

_STRIDES = {2: (2, 1), 4: (2, 2), 6: (2, 3), 8: (2, 2, 2)}     # over time; over frequency every stride is 2


@dataclass(frozen=True, kw_only=True)
class Conv2dConfig:
    """Strided 2-D convolutions over time and frequency, then a linear layer."""

    factor: int = 4                         # input frames per output frame: 2, 4, 6 or 8
    channels: int = 64                      # ESPnet and WeNet take 256: a quarter of a 12-layer Conformer's time
    causal: bool = False                    # no look-ahead

    def __post_init__(self) -> None:
        if self.factor not in _STRIDES:
            raise ValueError(f"factor {self.factor} is not one of {', '.join(map(str, _STRIDES))}")


@dataclass(frozen=True)
class Conv2dCache:
    """Left context (B, kernel - 1, F, C) of each convolution, and how many frames each row has given (B,)."""

    histories: tuple[Tensor, ...]
    emitted: Tensor


@DOWNSAMPLERS.register("conv2d", Conv2dConfig)
class Conv2d(StreamingDownsampler):
    """Frames (B, T, F) -> (B, ceil(T / factor), D). Causal: output s sees inputs up to factor * s.

    Tensors are laid out (B, T, F, C): convolutions are faster so, and the linear layer reads them without a copy.
    """

    def __init__(self, config: Conv2dConfig, dim_in: int, dim_out: int, vocab_size: int) -> None:
        super().__init__()
        self.factor = config.factor
        self.causal = config.causal
        self.bins = [dim_in]                # mel bins in front of each convolution, and after the last
        self.convolutions = nn.ModuleList()
        for stride in _STRIDES[config.factor]:
            kernel = 3 if stride < 3 else 5
            channels = config.channels if self.convolutions else 1
            layer = nn.Conv2d(channels, config.channels, (kernel, 3), (stride, 2), padding=(0, 1))
            self.convolutions.append(layer.to(memory_format=torch.channels_last))
            self.bins.append((self.bins[-1] + 1) // 2)
        self.out_proj = nn.Linear(self.bins[-1] * config.channels, dim_out)

    def forward(self, inputs: Padded, positions: Tensor | None = None) -> DownsamplerOutput:
        output, _ = self.forward_chunk(inputs, positions, None)
        return output

    def init_cache(self, batch_size: int) -> Conv2dCache:
        zeros = partial(self.out_proj.weight.new_zeros, batch_size)
        return Conv2dCache(
            tuple(zeros(layer.kernel_size[0] - 1, bins, layer.in_channels)
                  for layer, bins in zip(self.convolutions, self.bins, strict=False)),
            zeros(dtype=torch.int64),
        )

    def forward_chunk(
        self, inputs: Padded, positions: Tensor | None, cache: Conv2dCache | None,
    ) -> tuple[DownsamplerOutput, Conv2dCache | None]:
        x, lengths, histories = inputs.data[..., None], inputs.lengths, []
        for index, layer in enumerate(self.convolutions):
            x = x.masked_fill(~Padded(x, lengths).mask[:, :, None, None], 0)
            context = layer.kernel_size[0] - 1
            if cache is not None:
                x, history = continue_from(x, cache.histories[index].to(x.dtype), lengths)
                histories.append(history)
            else:
                left = context if self.causal else context // 2
                x = pad(x, (0, 0, 0, 0, left, context - left))
            x = relu(layer(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
            lengths = (lengths + layer.stride[0] - 1) // layer.stride[0]
        frames = Padded(self.out_proj(x.flatten(2)), lengths)
        emitted = 0 if cache is None else cache.emitted[:, None]
        at = emitted + torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        output = DownsamplerOutput(frames=frames, positions=at if positions is None else positions[:, ::self.factor])
        return output, None if cache is None else Conv2dCache(tuple(histories), cache.emitted + lengths)
