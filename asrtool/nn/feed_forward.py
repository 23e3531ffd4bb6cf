"""Position-wise feed-forward network with SiLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import silu

from asrtool.nn.dropout import Dropout, random_bytes

BLOCK = 2**16  # elements at a time: they and their slopes stay in a core's cache


class FeedForward(nn.Module):
    """down(dropout(silu(up(x)))), (B, S, D) -> (B, S, D)."""

    def __init__(self, dim: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.up_proj = nn.Linear(dim, ffn_dim)
        self.down_proj = nn.Linear(ffn_dim, dim)
        self.dropout = Dropout(dropout, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up_proj(x)
        # bfloat16 would round the sigmoid, and compiled code fuses by itself
        if self.dropout.draws(x) and x.dtype == torch.float32:
            return self.down_proj(DroppedSilu.apply(x.contiguous(), self.dropout.probability))
        return self.down_proj(self.dropout(silu(x)))


class DroppedSilu(torch.autograd.Function):
    """dropout(silu(x)) in place of a contiguous x on a CPU, block by block.

    These are the largest tensors of a layer, and each operation on one is a pass through memory.
    Backward reads the slopes alone, masked as the outputs are.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, probability: float) -> Tensor:
        kept, factor = random_bytes(x.shape, probability)
        slopes, one = torch.empty_like(x), x.new_ones(())
        parts = (whole.view(-1).split(BLOCK) for whole in (x, slopes, kept))
        for block, slope, bits in zip(*parts, strict=True):
            mask = bits.to(x.dtype).mul_(factor)
            # silu(x) = x s with s = sigmoid(x), and its slope is silu(x) + s (1 - silu(x))
            torch.sigmoid(block, out=slope)
            block.mul_(slope)
            torch.lerp(block, one, slope, out=slope).mul_(mask)
            block.mul_(mask)
        ctx.mark_dirty(x)
        ctx.save_for_backward(slopes)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return gradient * slopes, None
