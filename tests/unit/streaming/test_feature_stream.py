"""Features of samples that come piece by piece: those of the whole audio."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asrtool.data.fbank import Fbank, FbankConfig
from asrtool.streaming import EndConfig, FeatureStream
from asrtool.streaming.together import Piece, Row, hear

MIRRORED = FbankConfig(preset="sherpa", num_mel_bins=20, rate=8000)


def stream(config: FbankConfig) -> FeatureStream:
    data = SimpleNamespace(input="fbank", fbank=config)
    return FeatureStream(SimpleNamespace(config=SimpleNamespace(data=data), cmvn=None))


@pytest.mark.parametrize("config", [FbankConfig(), MIRRORED], ids=["whole frames", "mirrored"])
@pytest.mark.parametrize("largest", [1, 70, 500, 4000])
def test_pieces_of_any_size_give_the_features_of_the_whole(config: FbankConfig, largest: int):
    draw = random.Random(largest)
    for length in (0, 30, 70, 300, 1111, 1120, 1200):
        samples = np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32)
        features, at, parts = stream(config), 0, []
        while at < length:
            size = draw.randrange(largest + 1)
            parts.append(features(samples[at : at + size]))
            at += size
        parts.append(features(samples[at:], final=True))
        parts.append(features(samples[at:], final=True))  # a row that has ended gives no more
        whole = Fbank(config)(torch.from_numpy(samples))
        torch.testing.assert_close(torch.cat(parts), whole, atol=2e-4, rtol=0)


@pytest.mark.parametrize("config", [FbankConfig(), MIRRORED], ids=["whole frames", "mirrored"])
def test_missing_samples_are_those_that_complete_frames(config: FbankConfig):
    features = stream(config)
    for frames in (3, 16, 1, 16):
        missing = features.missing(frames)
        noise = np.random.default_rng(frames).normal(0, 0.1, missing).astype(np.float32)
        assert len(features(noise[:-1])) == frames - 1
        assert features.missing(1) == 1
        assert len(features(noise[-1:])) == 1


@pytest.mark.parametrize("config", [FbankConfig(), MIRRORED], ids=["whole frames", "mirrored"])
def test_a_row_of_several_streams_hears_the_features_of_the_whole(config: FbankConfig):
    encoder = SimpleNamespace(seconds_per_frame=0.04, input_frames=4)
    data = SimpleNamespace(input="fbank", fbank=config)
    recognizer = SimpleNamespace(
        config=SimpleNamespace(data=data),
        cmvn=None,
        rate=config.rate,
        chunk=4,
        model=SimpleNamespace(encoder=encoder),
    )
    row = Row(recognizer, EndConfig())
    samples = np.random.default_rng(0).normal(0, 0.1, 9000).astype(np.float32)
    at, parts = 0, []
    while at < len(samples):
        size = row.missing
        assert size > 0
        parts += hear([row], [Piece(samples[at : at + size], at + size >= len(samples))])
        at += size
    assert {len(part) for part in parts[:-1]} == {16}
    whole = Fbank(config)(torch.from_numpy(samples))
    torch.testing.assert_close(torch.cat(parts), whole, atol=2e-4, rtol=0)
