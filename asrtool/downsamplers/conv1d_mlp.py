"""Conv1dMLP (arXiv 2406.17272): a strided convolution and an MLP between an encoder and an LLM.

    z_s = ReLU(sum_k W_k x_{s r + k} + b),   k = 0 ... kernel - 1     one row for every r frames
    y_s = W_2 ReLU(W_1 z_s + b_1) + b_2                               of the LLM's width

The paper gives no widths. These are the ones of SLAM-LLM's `cov1d` projector (kernel and stride 5,
hidden width 2,048), which has 15.7 M parameters between HuBERT-large and a 7B model. SLAM-LLM drops
the frames of an incomplete last block. Here it is padded with zeros, so no audio is lost and a
single frame yields a row.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.functional import pad, relu

from asrtool.downsamplers.base import DOWNSAMPLERS, Downsampler
from asrtool.registry import bounded
from asrtool.types import DownsamplerOutput, Padded, both


@dataclass(frozen=True, kw_only=True)
class Conv1dMlpConfig:
    """Strided convolution, then two linear layers."""

    # frames per row that the LLM reads: 4, 5 and 8 are usual, any number above 0 works
    rate: int = 5
    kernel: int | None = bounded(None, least=1)  # frames that a row reads; null: `rate`
    hidden_dim: int = bounded(2048, least=1)

    def __post_init__(self) -> None:
        check_blocks(self.rate, self.kernel)


@DOWNSAMPLERS.register("conv1d_mlp", Conv1dMlpConfig)
class Conv1dMlp(Downsampler):
    """Frames (B, T, D_in) -> (B, ceil(T / rate), D_out)."""

    uniform = True

    def __init__(self, config: Conv1dMlpConfig, dim_in: int, dim_out: int, vocab_size: int) -> None:
        super().__init__()
        self.factor = config.rate
        self.blocks = BlockConvolution(dim_in, config.rate, config.kernel)
        self.up_proj = nn.Linear(dim_in, config.hidden_dim)
        self.out_proj = nn.Linear(config.hidden_dim, dim_out)

    def forward(self, inputs: Padded, positions: Tensor | None = None) -> DownsamplerOutput:
        x, lengths = self.blocks(inputs)
        x = self.out_proj(relu(self.up_proj(relu(x))))
        return DownsamplerOutput(
            frames=Padded(x, lengths), positions=block_positions(inputs, positions, self.factor)
        )


class BlockConvolution(nn.Module):
    """Strided convolution: row s reads frames s * rate ... s * rate + kernel - 1."""

    def __init__(self, dim: int, rate: int, kernel: int | None) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(dim, dim, kernel or rate, stride=rate)

    def forward(self, inputs: Padded) -> Padded:
        """(B, T, D) -> (B, ceil(T / rate), D)."""
        (rate,), (kernel,) = self.convolution.stride, self.convolution.kernel_size
        x, lengths = whole_blocks(inputs, rate, kernel - rate)
        return Padded(self.convolution(x.transpose(1, 2)).transpose(1, 2), lengths)


def whole_blocks(inputs: Padded, rate: int, more: int = 0) -> Padded:
    """(B, T, D) with zeros in the padding, and T extended to a multiple of `rate`, plus `more`.

    Lengths count blocks: ceil(length / rate).
    """
    x = inputs.data.masked_fill(~inputs.mask[:, :, None], 0)
    # -T % rate frames complete the last block; `more` is what a kernel longer than the rate reads
    # beyond it
    x = pad(x, (0, 0, 0, -x.shape[1] % rate + more))
    lengths = both(lambda n: (n + rate - 1).div(rate, rounding_mode="floor"), inputs.lengths)
    return Padded(x, lengths)


def block_positions(inputs: Padded, positions: Tensor | None, rate: int) -> Tensor:
    """(B, S): the position of each block's first frame. positions: None stands for 0, 1, 2, ..."""
    if positions is None:
        positions = inputs.lengths.new_tensor(range(inputs.data.shape[1])).expand(
            inputs.data.shape[:2]
        )
    return positions[:, ::rate]


def check_blocks(rate: int, kernel: int | None) -> None:
    """Raise `ValueError` for a rate below 1 or a kernel that would skip frames."""
    if rate < 1:
        raise ValueError(f"rate must be at least 1 frame, got {rate}")
    if kernel is not None and kernel < rate:
        raise ValueError(
            f"kernel {kernel} must be at least rate {rate}, or frames between blocks are lost"
        )
