"""DwsMLP (arXiv 2406.17272): stacked frames, then an MLP; SLAM-LLM's `linear` projector.

    y_s = W_2 ReLU(W_1 [x_{s r}; ...; x_{s r + r - 1}] + b_1) + b_2

The paper gives no widths. These are SLAM-LLM's (r = 5, hidden width 2,048: 18.9 M parameters
between HuBERT-large and a 7B model). The last block is padded with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import relu

from asrtool.downsamplers.base import DOWNSAMPLERS, Downsampler
from asrtool.downsamplers.conv1d_mlp import block_positions, check_blocks, whole_blocks
from asrtool.registry import bounded
from asrtool.types import DownsamplerOutput, Padded


@dataclass(frozen=True, kw_only=True)
class DwsMlpConfig:
    """Stacked frames, then two linear layers."""

    rate: int = 5  # frames per row that the LLM reads
    hidden_dim: int = bounded(2048, least=1)

    def __post_init__(self) -> None:
        check_blocks(self.rate, None)


@DOWNSAMPLERS.register("dws_mlp", DwsMlpConfig)
class DwsMlp(Downsampler):
    """Frames (B, T, D_in) -> (B, ceil(T / rate), D_out)."""

    uniform = True

    def __init__(self, config: DwsMlpConfig, dim_in: int, dim_out: int, vocab_size: int) -> None:
        super().__init__()
        self.factor = config.rate
        self.up_proj = nn.Linear(config.rate * dim_in, config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, dim_out)

    def forward(self, inputs: Padded, positions: Tensor | None = None) -> DownsamplerOutput:
        x, lengths = whole_blocks(inputs, self.factor)
        x = x.unflatten(1, (-1, self.factor)).flatten(2)  # (B, S r, D) -> (B, S, r D)
        x = self.out_proj(relu(self.up_proj(x)))
        return DownsamplerOutput(
            frames=Padded(x, lengths), positions=block_positions(inputs, positions, self.factor)
        )
