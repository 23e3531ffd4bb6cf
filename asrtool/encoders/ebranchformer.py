"""The E-Branchformer (arXiv 2210.00077): a Conformer whose layers have two branches.

Attention and a convolutional gating MLP see the same frames; a depthwise convolution merges them
(asrtool/nn/ebranchformer.py). Everything else is the Conformer's: downsamplers before any layer,
key frames, Echo-MSA, layer drop, chunks and their caches. To stream, both depthwise convolutions
look back only, each with a cache.

From the authors' LibriSpeech config and code (ESPnet): two half feed-forwards with SiLU, a gate
without activation or linear layer, kernels of 31, and dropout after the gate, after each branch
and after the merge.
"""

from __future__ import annotations

from dataclasses import dataclass

from asrtool.encoders.base import ENCODERS
from asrtool.encoders.conformer import Conformer, ConformerConfig
from asrtool.nn.ebranchformer import EBranchformerLayer, GatingMlp, Merge
from asrtool.registry import bounded


@dataclass(frozen=True, kw_only=True)
class EBranchformerConfig(ConformerConfig):
    """E-Branchformer (arXiv 2210.00077); by default about as large as the Conformer's default."""

    num_layers: int = bounded(17, least=0)
    ffn_dim: int = bounded(1024, least=1)
    # channels of the gating MLP, half of which gate the others: ESPnet's `cgmlp_linear_units`
    cgmlp_dim: int = bounded(1024, least=2)
    kernel: int = bounded(31, least=1)  # frames of the gate's depthwise convolution
    merge_kernel: int = bounded(31, least=1)  # frames of the merge's

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cgmlp_dim % 2:
            raise ValueError(
                f"cgmlp_dim is {self.cgmlp_dim}, expected an even number: one half gates the other"
            )


@ENCODERS.register("ebranchformer", EBranchformerConfig)
class EBranchformer(Conformer):
    """Features (B, T, F) -> frames (B, S, D), as the Conformer."""

    def build_layer(self, config: EBranchformerConfig, index: int) -> EBranchformerLayer:
        return EBranchformerLayer(
            config.dim,
            config.ffn_dim,
            self.build_attention(config),
            GatingMlp(config.dim, config.cgmlp_dim, config.kernel, config.causal, config.dropout),
            Merge(config.dim, config.merge_kernel, config.causal),
            config.dropout,
        )
