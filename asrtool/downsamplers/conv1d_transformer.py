"""Conv1dTransformer (arXiv 2406.17272): a strided convolution, then Transformer layers.

The paper gives no details. We take the convolution of Conv1dMLP, ReLU, pre-norm layers with rotary
positions that see the whole utterance, a norm, and a linear layer to the LLM's width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from asrtool.downsamplers.base import DOWNSAMPLERS, Downsampler
from asrtool.downsamplers.conv1d_mlp import BlockConvolution, block_positions, check_blocks
from asrtool.nn.attention import RotarySelfAttention
from asrtool.nn.masks import attention_mask
from asrtool.nn.positions import rotations
from asrtool.nn.transformer import TransformerLayer
from asrtool.registry import bounded
from asrtool.types import DownsamplerOutput, Padded


@dataclass(frozen=True, kw_only=True)
class Conv1dTransformerConfig:
    """Strided convolution, then Transformer layers of the encoder's width."""

    rate: int = 5  # frames per row that the LLM reads
    kernel: int | None = bounded(None, least=1)  # frames that a row reads; null: `rate`
    num_layers: int = bounded(2, least=0)
    num_heads: int = bounded(8, least=1)
    ffn_dim: int = bounded(2048, least=1)
    dropout: float = bounded(0.1, least=0, below=1)

    def __post_init__(self) -> None:
        check_blocks(self.rate, self.kernel)


@DOWNSAMPLERS.register("conv1d_transformer", Conv1dTransformerConfig)
class Conv1dTransformer(Downsampler):
    """Frames (B, T, D_in) -> (B, ceil(T / rate), D_out)."""

    uniform = True

    def __init__(
        self, config: Conv1dTransformerConfig, dim_in: int, dim_out: int, vocab_size: int
    ) -> None:
        super().__init__()
        self.factor = config.rate
        self.blocks = BlockConvolution(dim_in, config.rate, config.kernel)
        self.layers = nn.ModuleList(
            TransformerLayer(
                dim_in,
                RotarySelfAttention(dim_in, config.num_heads),
                config.ffn_dim,
                config.dropout,
            )
            for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(dim_in)
        self.out_proj = nn.Linear(dim_in, dim_out)

    def forward(self, inputs: Padded, positions: Tensor | None = None) -> DownsamplerOutput:
        rows = self.blocks(inputs)
        x, mask = relu(rows.data), attention_mask(rows.mask)
        steps = torch.arange(x.shape[1], device=x.device)[None]
        for layer in self.layers:
            x, _ = layer(x, mask, rotations(steps, layer.attention.num_frequencies))
        frames = Padded(self.out_proj(self.norm(x)), rows.lengths)
        return DownsamplerOutput(
            frames=frames, positions=block_positions(inputs, positions, self.factor)
        )
