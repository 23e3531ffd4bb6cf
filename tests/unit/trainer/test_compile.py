"""What `trainer.compile` compiles: each layer is one graph, and a few graphs do for all lengths."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.utils import counters

from asrtool.downsamplers import Conv2dConfig, KeyframeConfig
from asrtool.encoders import ChunkConfig, ConformerConfig, EBranchformerConfig
from asrtool.encoders.conformer import Conformer
from asrtool.encoders.ebranchformer import EBranchformer
from asrtool.trainer import parallel
from asrtool.types import Padded

SHAPE = {"num_layers": 3, "dim": 16, "num_heads": 2, "ffn_dim": 32, "kernel": 5}
STEM = {0: Conv2dConfig(channels=4)}
CASES = {
    "rotary": ConformerConfig(**SHAPE, downsamplers=STEM),
    "relative": ConformerConfig(**SHAPE, downsamplers=STEM, positions="relative"),
    "layers dropped": ConformerConfig(**SHAPE, downsamplers=STEM, layer_drop=0.5),
    "key frames": ConformerConfig(**SHAPE, downsamplers={**STEM, 1: KeyframeConfig()}),
    "chunks": ConformerConfig(
        **SHAPE,
        downsamplers={0: Conv2dConfig(channels=4, causal=True)},
        causal=True,
        chunk=ChunkConfig(),
    ),
    "E-Branchformer": EBranchformerConfig(**SHAPE, cgmlp_dim=32, downsamplers=STEM),
}


@pytest.fixture
def counted():
    torch._dynamo.reset()
    counters.clear()
    yield counters
    torch._dynamo.reset()


@pytest.mark.parametrize("config", CASES.values(), ids=CASES)
def test_a_layer_is_one_graph_and_few_do_for_all_lengths(config, counted):
    torch.manual_seed(0)
    kind = EBranchformer if isinstance(config, EBranchformerConfig) else Conformer
    encoder = kind(config, input_dim=16, vocab_size=5, frame_shift=0.01).train()
    # torch does not compile its own modules, such as the convolutions of the stem
    own = [one for one in parallel.units(encoder) if not type(one).__module__.startswith("torch.")]
    assert own == list(encoder.layers)
    for layer in own:
        layer.compile(backend="eager", fullgraph=True)
    for longest in (141, 170, 98, 120):
        rows = [torch.randn(size, 16) for size in (longest, 64, 90)]
        encoder(Padded.stack(rows)).frames.data.sum().backward()
    assert not counted["graph_break"]
    assert 0 < counted["stats"]["unique_graphs"] <= 6
