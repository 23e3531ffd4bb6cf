"""The Conformer's convolution module (arXiv 2005.08100, figure 2), and the left context of causal
convolutions.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, glu, pad, silu


def continue_from(x: Tensor, history: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Put `history` in front of x, and say what the next piece will need in front of it.

    x (B, S, ...) with lengths (B,), history (B, K, ...) -> (B, K + S, ...), the last K frames of
    each row (B, K, ...).
    """
    joined = torch.cat([history, x], dim=1)
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    last = lengths[:, None] + torch.arange(history.shape[1], device=x.device)
    return joined, joined[rows, last]


class ConvolutionModule(nn.Module):
    """Pointwise, gated linear unit, depthwise over time, layer norm, SiLU, pointwise.

    Layer norm instead of batch norm: an utterance's numbers do not depend on its batch, on
    micro-batches or on chunks.
    """

    def __init__(self, dim: int, kernel: int, causal: bool = False, stride: int = 1) -> None:
        super().__init__()
        self.causal = causal
        self.stride = stride  # of the depthwise convolution: every so many frames one comes out
        self.kernel = kernel
        self.in_proj = nn.Linear(dim, 2 * dim)
        self.depthwise = nn.Conv1d(dim, dim, kernel, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.out_proj = nn.Linear(dim, dim)

    def init_cache(self, batch_size: int) -> Tensor:
        """The zeros (B, kernel - 1, D) that a causal convolution sees before the first frame."""
        return self.depthwise.weight.new_zeros(
            batch_size, self.kernel - 1, self.depthwise.in_channels
        )

    def forward(
        self, x: Tensor, valid: Tensor, cache: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, S, D), valid (B, S), cache (B, kernel - 1, D) of a causal form -> (B, ceil(S /
        stride), D), cache.
        """
        x = glu(self.in_proj(x)).masked_fill(~valid[:, :, None], 0)
        if cache is not None:
            x, cache = continue_from(x, cache.to(x.dtype), valid.sum(dim=1))
        elif self.causal:
            x = pad(x, (0, 0, self.kernel - 1, 0))
        else:
            x = pad(x, (0, 0, self.kernel // 2, (self.kernel - 1) // 2))
        return self.out_proj(silu(self.norm(self.convolve(x)))), cache

    def convolve(self, x: Tensor) -> Tensor:
        """(B, S + kernel - 1, D) -> (B, S, D), as a 2-D convolution with D last in memory: much
        faster on CPU.
        """
        weight, stride = self.depthwise.weight.unsqueeze(2), (1, self.stride)
        y = conv2d(x.transpose(1, 2).unsqueeze(2), weight, stride=stride, groups=x.shape[-1])
        return y.squeeze(2).transpose(1, 2) + self.depthwise.bias
