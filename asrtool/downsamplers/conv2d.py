"""Strided 2-D convolutions over time and frequency: the usual stem of ASR encoders."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu_

from asrtool.downsamplers.base import DOWNSAMPLERS, StreamingDownsampler
from asrtool.nn.convolution import continue_from
from asrtool.nn.masks import valid_mask
from asrtool.nn.rows import PerRow
from asrtool.registry import bounded
from asrtool.types import DownsamplerOutput, Padded, both

# factor -> strides over time of the convolutions; over frequency every stride is 2
_STRIDES = {2: (2, 1), 4: (2, 2), 6: (2, 3), 8: (2, 2, 2)}

FEW_CHANNELS = 128  # up to so many, channels last is faster in training


@dataclass(frozen=True, kw_only=True)
class Conv2dConfig:
    """Strided 2-D convolutions over time and frequency, then a linear layer."""

    factor: int = bounded(4, least=1)  # input frames per output frame: 2, 4, 6 or 8
    # with 256, as in ESPnet and WeNet, a quarter of a 12-layer Conformer's time
    channels: int = bounded(64, least=1)
    causal: bool = False  # no look-ahead

    def __post_init__(self) -> None:
        if self.factor not in _STRIDES:
            raise ValueError(f"factor {self.factor} is not one of {', '.join(map(str, _STRIDES))}")


@dataclass(frozen=True)
class Conv2dCache(PerRow):
    """Left contexts (B, kernel - 1, C, F) of the convolutions; output frames so far (B,)."""

    histories: tuple[Tensor, ...]
    emitted: Tensor


@DOWNSAMPLERS.register("conv2d", Conv2dConfig)
class Conv2d(StreamingDownsampler):
    """Frames (B, T, F) -> (B, ceil(T / factor), D); causal: s sees inputs up to factor * s."""

    uniform = True

    def __init__(self, config: Conv2dConfig, dim_in: int, dim_out: int, vocab_size: int) -> None:
        super().__init__()
        self.factor = config.factor
        self.causal = config.causal
        self.bins = [dim_in]  # mel bins before each convolution, and after the last
        # channels last is twice as fast on CPU, except for the weight gradient of many channels
        layout = torch.channels_last if config.channels <= FEW_CHANNELS else torch.contiguous_format
        self.convolutions = nn.ModuleList()
        for stride in _STRIDES[config.factor]:
            kernel = 3 if stride < 3 else 5
            channels = config.channels if self.convolutions else 1
            padding = (0 if self.causal else kernel // 2, 1)
            layer = nn.Conv2d(channels, config.channels, (kernel, 3), (stride, 2), padding)
            self.convolutions.append(layer.to(memory_format=layout))
            self.bins.append((self.bins[-1] + 1) // 2)
        self.out_proj = nn.Linear(self.bins[-1] * config.channels, dim_out)

    def forward(self, inputs: Padded, positions: Tensor | None = None) -> DownsamplerOutput:
        output, _ = self.forward_chunk(inputs, positions, None)
        return output

    def init_cache(self, batch_size: int) -> Conv2dCache:
        zeros = partial(self.out_proj.weight.new_zeros, batch_size)
        return Conv2dCache(
            tuple(
                zeros(layer.kernel_size[0] - 1, layer.in_channels, bins)
                for layer, bins in zip(self.convolutions, self.bins, strict=False)
            ),
            zeros(dtype=torch.int64),
        )

    def forward_chunk(
        self,
        inputs: Padded,
        positions: Tensor | None,
        cache: Conv2dCache | None,
    ) -> tuple[DownsamplerOutput, Conv2dCache | None]:
        x = inputs.data.masked_fill(~inputs.mask[:, :, None], 0)[:, None]  # (B, C, T, F)
        lengths, histories = inputs.lengths, []
        for index, layer in enumerate(self.convolutions):
            # (B, C, T, F) <-> (B, T, C, F), because `continue_from` joins over dimension 1
            if cache is not None:
                x, history = continue_from(
                    x.transpose(1, 2), cache.histories[index].to(x.dtype), lengths
                )
                x = x.transpose(1, 2)
                histories.append(history)
            elif self.causal:
                x = pad(x, (0, 0, layer.kernel_size[0] - 1, 0))
            x = layer(x)
            lengths = both(lambda n, stride=layer.stride[0]: (n + stride - 1) // stride, lengths)
            # The convolution adds its bias in the padding too. Zero it again, so that the next one
            # sees what it would see at the end of a single utterance.
            x = relu_(x.mul_(valid_mask(lengths, x.shape[2])[:, None, :, None].to(x.dtype)))
        # with channels last in memory, permuting and flattening are views
        x = x.permute(0, 2, 3, 1)  # (B, S, F, C)
        frames = Padded(self.out_proj(x.flatten(2)), lengths)
        emitted = 0 if cache is None else cache.emitted[:, None]
        at = emitted + torch.arange(x.shape[1], device=x.device).expand(x.shape[:2])
        output = DownsamplerOutput(
            frames=frames, positions=at if positions is None else positions[:, :: self.factor]
        )
        return output, None if cache is None else Conv2dCache(
            tuple(histories), cache.emitted + lengths
        )
