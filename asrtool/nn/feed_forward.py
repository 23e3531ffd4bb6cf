"""Position-wise feed-forward network with SiLU."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import silu

from asrtool.nn.dropout import Dropout


class FeedForward(nn.Module):
    """down(dropout(silu(up(x)))), (B, S, D) -> (B, S, D)."""

    def __init__(self, dim: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.up_proj = nn.Linear(dim, ffn_dim)
        self.down_proj = nn.Linear(ffn_dim, dim)
        self.dropout = Dropout(dropout, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.dropout(silu(self.up_proj(x))))
