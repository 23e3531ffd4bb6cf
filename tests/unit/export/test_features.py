"""Features inside a graph are those that trained the model."""

from __future__ import annotations

import pytest
import torch

from asrtool.data.fbank import Fbank, FbankConfig
from asrtool.export.features import FbankGraph, features_of
from asrtool.types import Padded

CONFIGS = {
    "default": FbankConfig(),
    "sherpa": FbankConfig(preset="sherpa"),
    "telephone": FbankConfig(rate=8000, num_mel_bins=20, low_hz=60, snip_edges=False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_graph_computes_the_features_of_stage_1(name):
    config = CONFIGS[name]
    generator = torch.Generator().manual_seed(0)
    rows = [0.1 * torch.randn(n, generator=generator) for n in (4000, 399, 80, 1, 0, 2777)]
    batch = Padded.stack(rows, padding=0.3)
    found, expected = FbankGraph(config)(*batch), Fbank(config)(batch)
    assert torch.equal(found.lengths, expected.lengths)
    for one, other in zip(found.unpad(), expected.unpad(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_description_is_enough_to_count_the_frames(name):
    config = CONFIGS[name]
    facts = features_of(config)
    for samples in (1000, 1159, 1160, 16000):
        length, shift = facts["frame_length"], facts["frame_shift"]
        whole = 1 + (samples - length) // shift
        count = whole if facts["snip_edges"] else (samples + shift // 2) // shift
        assert count == config.num_frames(samples)
    assert (facts["sample_scale"], facts["high_hz"]) == (config.sample_scale, config.top_hz)
    assert (facts["window"], facts["preemphasis"]) == ("povey", 0.97)
