"""The downsamplers: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.downsamplers.base import DOWNSAMPLERS, Downsampler, StreamingDownsampler
from asrtool.downsamplers.conv2d import Conv2d, Conv2dConfig
from asrtool.downsamplers.strided_conv import StridedConv, StridedConvConfig

__all__ = [
    "DOWNSAMPLERS", "Conv2d", "Conv2dConfig", "Downsampler", "StreamingDownsampler", "StridedConv", "StridedConvConfig",
]
