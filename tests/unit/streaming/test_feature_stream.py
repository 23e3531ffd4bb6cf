"""Features of samples that come piece by piece: those of the whole audio."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from asrtool.data.fbank import Fbank, FbankConfig
from asrtool.streaming import FeatureStream

MIRRORED = FbankConfig(preset="sherpa", num_mel_bins=20, rate=8000)


def stream(config: FbankConfig) -> FeatureStream:
    data = SimpleNamespace(input="fbank", fbank=config)
    return FeatureStream(SimpleNamespace(config=SimpleNamespace(data=data), cmvn=None))


both = pytest.mark.parametrize(
    "config", [FbankConfig(), MIRRORED], ids=["whole frames", "mirrored"]
)


@both
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


@both
def test_the_samples_that_are_missing_complete_the_frames_and_no_more(config: FbankConfig):
    features, silence = stream(config), np.zeros(100_000, np.float32)
    features(silence[:333])
    for frames in (1, 7, 3):
        size = features.missing(frames)
        assert len(features(silence[: size - 1])) == frames - 1
        assert len(features(silence[:1])) == 1
