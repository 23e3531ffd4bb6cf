"""Accent experts: a mixture of experts with an intermediate CTC head each (arXiv 2602.01967).

    r_t = R norm(h_t),   g_t = softmax(r_t)                   routing over E experts           (1)
    e_{t,k} = D_k silu(U_k norm(h_t) + b_k)                   output of expert k               (2)
    f_t = h_t + sum over k of g_{t,k} e_{t,k}                                                  (3)
    p_{t,k} = softmax(C_k (h_t + e_{t,k}) + c_k)              CTC head of expert k             (4)

It stands before a layer and keeps every frame. There is an expert for each accent: r is the tap
`accent`, which the loss `accent` compares with the accent of the utterance, so that each expert
learns from its own accent. The loss `expert_ctc` reads (4), and draws the routing towards the
expert that reads the words best. No label is needed to recognise.

Only the paper's abstract was at hand. Its routing begins with the true accents, and is handed over
to the router by and by; here the router decides from the start, and the loss `accent` is what the
labels do. That a frame (and not an utterance) is routed, to all experts (and not to a few), and the
form of (2), a feed-forward network beside the frame, are ours: so it streams without a state.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from asrtool.downsamplers.base import DOWNSAMPLERS, FrameByFrame
from asrtool.nn.dropout import Dropout
from asrtool.registry import bounded


@dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """Accent experts, each with a CTC head (arXiv 2602.01967): before a layer, not as a stem."""

    experts: int = bounded(9, least=2)  # as many as there are accents
    dim: int = bounded(256, least=1)  # hidden units of an expert
    dropout: float = bounded(0.1, least=0, below=1)  # of the hidden units


@DOWNSAMPLERS.register("experts", ExpertsConfig)
class Experts(FrameByFrame):
    """Frames (B, T, D_in) -> (B, T, D_out).

    Taps: `accent` (B, T, E), logits of the routing; `expert_ctc` (B, T, E * V), the logits of (4),
    expert by expert.
    """

    def __init__(self, config: ExpertsConfig, dim_in: int, dim_out: int, vocab_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim_in)
        self.router = nn.Linear(dim_in, config.experts)
        self.up_proj = nn.Linear(dim_in, config.experts * config.dim)
        self.down_proj = nn.Parameter(torch.empty(config.experts, config.dim, dim_in))
        self.head_weight = nn.Parameter(torch.empty(config.experts, dim_in, vocab_size))
        self.head_bias = nn.Parameter(torch.zeros(config.experts, vocab_size))
        # as nn.Linear, for each expert
        for weight in (self.down_proj, self.head_weight):
            bound = 1 / math.sqrt(weight.shape[1])
            nn.init.uniform_(weight, -bound, bound)
        self.dropout = Dropout(config.dropout)
        self.out_proj = nn.Identity() if dim_in == dim_out else nn.Linear(dim_in, dim_out)

    def each(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        normed = self.norm(x)
        routing = self.router(normed)  # (1)
        hidden = self.dropout(silu(self.up_proj(normed))).unflatten(2, (len(self.down_proj), -1))
        outputs = torch.einsum("btkh,khd->btkd", hidden, self.down_proj)  # (2)
        gates = routing.float().softmax(-1).to(outputs.dtype)
        y = self.out_proj(x + torch.einsum("btk,btkd->btd", gates, outputs))  # (3)
        logits = torch.einsum("btkd,kdv->btkv", x[:, :, None] + outputs, self.head_weight)
        logits = (logits + self.head_bias).flatten(2)  # (4)
        return y, {"accent": routing, "expert_ctc": logits}
