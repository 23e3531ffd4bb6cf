"""The downsamplers: this list is the registry. A new file is added here."""

from __future__ import annotations

from asrtool.downsamplers.base import DOWNSAMPLERS, Downsampler, StreamingDownsampler
from asrtool.downsamplers.conv1d_mlp import Conv1dMlp, Conv1dMlpConfig
from asrtool.downsamplers.conv1d_transformer import Conv1dTransformer, Conv1dTransformerConfig
from asrtool.downsamplers.conv2d import Conv2d, Conv2dConfig
from asrtool.downsamplers.dws_mlp import DwsMlp, DwsMlpConfig
from asrtool.downsamplers.experts import Experts, ExpertsConfig
from asrtool.downsamplers.keyframe import Keyframe, KeyframeConfig, select_keyframes
from asrtool.downsamplers.linear import Linear, LinearConfig
from asrtool.downsamplers.strided_conv import StridedConv, StridedConvConfig
from asrtool.downsamplers.uma import Uma, UmaConfig

__all__ = [
    "DOWNSAMPLERS",
    "Conv1dMlp",
    "Conv1dMlpConfig",
    "Conv1dTransformer",
    "Conv1dTransformerConfig",
    "Conv2d",
    "Conv2dConfig",
    "Downsampler",
    "DwsMlp",
    "DwsMlpConfig",
    "Experts",
    "ExpertsConfig",
    "Keyframe",
    "KeyframeConfig",
    "Linear",
    "LinearConfig",
    "StreamingDownsampler",
    "StridedConv",
    "StridedConvConfig",
    "Uma",
    "UmaConfig",
    "select_keyframes",
]
