"""The E-Branchformer layer (arXiv 2210.00077): attention beside a convolutional gating MLP.

    X1  = X + 1/2 FFN(norm(X))
    Y_G = attention(norm(X1))                   global branch
    Y_L = cgMLP(norm(X1))                       local branch
    C   = [Y_G, Y_L]                            side by side, 2 D channels
    X2  = X1 + W (C + depthwise(C))             merge
    Y   = norm(X2 + 1/2 FFN(norm(X2)))

cgMLP is that of the Branchformer (arXiv 2207.02971):

    [A, B] = GELU(U Z)                          halves of the channels
    cgMLP(Z) = V (A * depthwise(norm(B)))       * by element: the convolutional spatial gating unit

Both depthwise convolutions see the neighbouring frames that there are, whatever their positions:
behind a downsampler that drops frames, such as key frames, those are the kept ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from asrtool.nn.attention import SelfAttention
from asrtool.nn.conformer import ConformerLayer, ConformerLayerCache, Scope
from asrtool.nn.convolution import DepthwiseConvolution
from asrtool.nn.dropout import Dropout

GATE_STD = 1e-6  # of the gate's initial weights


class GatingMlp(nn.Module):
    """cgMLP: (B, S, D) -> (B, S, D) through `hidden` channels, half of which gate the others.

    Initially the gate is 1: its weights are near 0 and its biases 1 (gMLP, arXiv 2105.08050,
    section 2.1).
    """

    def __init__(self, dim: int, hidden: int, kernel: int, causal: bool, dropout: float) -> None:
        super().__init__()
        if hidden % 2:
            raise ValueError(f"a gating MLP of {hidden} channels cannot be halved")
        self.in_proj = nn.Linear(dim, hidden)
        self.norm = nn.LayerNorm(hidden // 2)
        self.depthwise = DepthwiseConvolution(hidden // 2, kernel, causal)
        nn.init.normal_(self.depthwise.weight, std=GATE_STD)
        nn.init.ones_(self.depthwise.bias)
        self.out_proj = nn.Linear(hidden // 2, dim)
        self.dropout = Dropout(dropout, inplace=True)

    def init_cache(self, batch_size: int) -> Tensor:
        """The gate (B, kernel - 1, hidden / 2) before the first frame."""
        return self.depthwise.init_cache(batch_size)

    def forward(
        self, x: Tensor, valid: Tensor, cache: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x (B, S, D), valid (B, S), cache (B, kernel - 1, hidden / 2) or None, as the output."""
        value, gate = gelu(self.in_proj(x)).chunk(2, dim=-1)
        gate, cache = self.depthwise(self.norm(gate), valid, cache)
        return self.out_proj(self.dropout(value * gate)), cache


class Merge(nn.Module):
    """W (C + depthwise(C)) of two branches side by side, C = [Y_G, Y_L]."""

    def __init__(self, dim: int, kernel: int, causal: bool) -> None:
        super().__init__()
        self.depthwise = DepthwiseConvolution(2 * dim, kernel, causal)
        self.out_proj = nn.Linear(2 * dim, dim)

    def forward(
        self, branches: Tensor, valid: Tensor, cache: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """branches (B, S, 2 D), valid (B, S), cache (B, kernel - 1, 2 D) or None -> (B, S, D)."""
        near, cache = self.depthwise(branches, valid, cache)
        return self.out_proj(branches + near), cache


@dataclass(frozen=True)
class EBranchformerLayerCache(ConformerLayerCache):
    """Also the left context of the merge (B, merge kernel - 1, 2 D)."""

    merge: Tensor


class EBranchformerLayer(ConformerLayer):
    """A gating MLP stands where the Conformer has its convolution module, but beside attention."""

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        attention: SelfAttention,
        convolution: GatingMlp,
        merge: Merge,
        dropout: float,
    ) -> None:
        super().__init__(dim, ffn_dim, attention, convolution, dropout)
        self.merge = merge

    def init_cache(self, batch_size: int) -> EBranchformerLayerCache:
        merge = self.merge.depthwise.init_cache(batch_size)
        convolution = self.convolution.init_cache(batch_size)
        nothing = merge[:, :0, : merge.shape[2] // 2]  # (B, 0, D)
        return EBranchformerLayerCache(self.attention.init_cache(nothing), convolution, merge)

    def forward(
        self,
        x: Tensor,
        scope: Scope,
        cache: EBranchformerLayerCache | None = None,
    ) -> tuple[Tensor, EBranchformerLayerCache | None]:
        """x (B, S, D) -> (B, S, D), the next cache; None if there was none."""
        x = self._half_step(x, self.first_norm, self.first, scope.rows)
        past = (None,) * 3 if cache is None else (cache.attention, cache.convolution, cache.merge)
        far, seen = self.attention(
            self.attention_norm(x), scope.visible, scope.rotations, past[0], scope.frames
        )
        near, history = self.convolution(self.convolution_norm(x), scope.valid, past[1])
        branches = torch.cat([self.dropout(far), self.dropout(near)], dim=-1)
        y, merged = self.merge(branches, scope.valid, past[2])
        x = x + self.dropout(y)
        x = self._half_step(x, self.second_norm, self.second, scope.rows)
        return self.final_norm(x), None if cache is None else EBranchformerLayerCache(
            seen.gather(scope.keep), history, merged
        )
