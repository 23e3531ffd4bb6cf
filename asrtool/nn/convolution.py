"""The Conformer's convolution module (arXiv 2005.08100, figure 2), causal or not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, glu, pad, silu


def continue_from(x: Tensor, history: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Prepend `history` to x, and return the history of the next piece too.

    x (B, S, ...) with lengths (B,), history (B, K, ...) -> (B, K + S, ...), and the last K valid
    frames of each row (B, K, ...).
    """
    joined = torch.cat([history, x], dim=1)
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    # Frame s of x is at K + s, so the last K valid frames are at lengths ... lengths + K - 1. A row
    # without new frames (length 0) keeps its history.
    last = lengths[:, None] + torch.arange(history.shape[1], device=x.device)
    return joined, joined[rows, last]


class DepthwiseConvolution(nn.Conv1d):
    """A convolution of each channel over time, centred or causal, whose past may be in a cache."""

    def __init__(self, dim: int, kernel: int, causal: bool = False, stride: int = 1) -> None:
        super().__init__(dim, dim, kernel, stride, groups=dim)
        self.causal = causal

    def init_cache(self, batch_size: int) -> Tensor:
        """The zeros (B, kernel - 1, D) that a causal convolution sees before the first frame."""
        return self.weight.new_zeros(batch_size, self.kernel_size[0] - 1, self.in_channels)

    def forward(
        self, x: Tensor, valid: Tensor, cache: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, S, D), valid (B, S), cache (B, kernel - 1, D) or None -> (B, S / stride, D), cache.

        S / stride is rounded up. A cache replaces the zeros before a causal convolution, which sees
        up to the last of the `stride` frames that an output stands for.
        """
        (kernel,), (stride,) = self.kernel_size, self.stride
        # zero the padding, as at the end of a single utterance: the convolution reads it
        x = x.masked_fill(~valid[:, :, None], 0)
        if cache is not None:
            x, cache = continue_from(x, cache.to(x.dtype), valid.sum(dim=1))
        elif self.causal:
            x = pad(x, (0, 0, kernel - 1, 0))
        else:
            x = pad(x, (0, 0, kernel // 2, (kernel - 1) // 2))
        if self.causal and stride > 1:
            # shifted, so that windows end at the last frame of each group; zeros complete the last
            # group
            x = pad(x[:, stride - 1 :], (0, 0, 0, -valid.shape[1] % stride))
        # a 2-D convolution over (B, D, 1, S) with D last in memory is much faster than 1-D on CPU
        x, weight = x.transpose(1, 2).unsqueeze(2), self.weight.unsqueeze(2)
        y = conv2d(x, weight, stride=(1, stride), groups=self.groups)
        return y.squeeze(2).transpose(1, 2) + self.bias, cache


class ConvolutionModule(nn.Module):
    """Pointwise, gated linear unit, depthwise over time, layer norm, SiLU, pointwise.

    Layer norm instead of batch norm, so that an utterance's output does not depend on its batch, on
    micro-batches or on chunks.
    """

    def __init__(self, dim: int, kernel: int, causal: bool = False, stride: int = 1) -> None:
        super().__init__()
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.depthwise = DepthwiseConvolution(dim, kernel, causal, stride)
        self.norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)

    def init_cache(self, batch_size: int) -> Tensor:
        """The cache (B, kernel - 1, D) of a causal depthwise convolution before the first frame."""
        return self.depthwise.init_cache(batch_size)

    def forward(
        self, x: Tensor, valid: Tensor, cache: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As the depthwise convolution: x (B, S, D), valid (B, S) -> (B, S / stride, D), cache."""
        x, cache = self.depthwise(glu(self.in_proj(x)), valid, cache)
        return self.out_proj(silu(self.norm(x))), cache
