"""Features against values of other implementations, stored by make_fbank_kaldi.py."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from asrtool import torchaudio_adapter
from asrtool.data.fbank import Fbank, FbankConfig

HERE = Path(__file__).parent
STORED = json.loads((HERE / "data" / "fbank_kaldi.json").read_text())
spec = importlib.util.spec_from_file_location("make_fbank_kaldi", HERE / "make_fbank_kaldi.py")
maker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(maker)

MEAN, LARGEST = 1e-5, 5e-2  # float32 rounding; the largest where a filter holds next to nothing


@pytest.mark.parametrize("case", STORED)
@pytest.mark.parametrize("source", ["kaldi-native-fbank", "torchaudio.compliance.kaldi"])
def test_features_equal_stored_ones(case: str, source: str) -> None:
    config = FbankConfig(**maker.CASES[case])
    stored = torch.tensor(STORED[case][source])
    found = Fbank(config)(torch.from_numpy(maker.signal(config.rate)))
    assert found.shape == stored.shape
    difference = (found - stored).abs()
    assert difference.mean() <= MEAN and difference.max() <= LARGEST


def test_the_preset_is_what_was_stored() -> None:
    assert FbankConfig(preset="sherpa") == FbankConfig(**maker.CASES["sherpa"])


def test_features_of_noise_equal_those_of_torchaudio() -> None:
    samples = torch.randn(16000, generator=torch.Generator().manual_seed(0)) * 0.1
    kaldi = torchaudio_adapter.require().compliance.kaldi
    expected = kaldi.fbank(samples[None] * 32768, num_mel_bins=80, dither=0.0)
    difference = (Fbank(FbankConfig())(samples) - expected).abs()
    assert difference.mean() <= MEAN and difference.max() <= LARGEST
