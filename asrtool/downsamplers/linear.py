"""A linear stem that keeps every frame: y = W norm(x) + b.

It is for frames that are encoded already, such as those of a pre-trained front end. Their channels
differ in scale by orders of magnitude, hence the layer norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from asrtool.downsamplers.base import DOWNSAMPLERS, FrameByFrame


@dataclass(frozen=True, kw_only=True)
class LinearConfig:
    """A linear layer that keeps every frame, for frames of a front end."""

    norm: bool = True  # layer norm before it


@DOWNSAMPLERS.register("linear", LinearConfig)
class Linear(FrameByFrame):
    """Frames (B, T, D_in) -> (B, T, D_out)."""

    def __init__(self, config: LinearConfig, dim_in: int, dim_out: int, vocab_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim_in) if config.norm else nn.Identity()
        self.proj = nn.Linear(dim_in, dim_out)

    def each(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.proj(self.norm(x)), {}
