"""Rates that share no factor with the model's need no memory; usual ones keep their bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchaudio

from asrtool.data import audio
from asrtool.data.audio import resampling

USUAL = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 88200, 96000, 176400, 192000)


def tone(rate: int, seconds: float = 0.5) -> np.ndarray:
    return np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_usual_rates_have_the_bits_of_torchaudio(rate: int) -> None:
    resample = torchaudio.transforms.Resample(rate, 16000)
    expected = resample(torch.from_numpy(tone(rate))).numpy()
    np.testing.assert_array_equal(audio.resample(tone(rate), rate, 16000), expected)


def test_no_pair_of_usual_rates_needs_a_large_kernel() -> None:
    assert (
        max(resampling.kernel_size(old, new) for old in USUAL for new in USUAL)
        <= resampling.KERNEL / 1.7
    )
    made = torchaudio.transforms.Resample(44100, 16000).kernel
    assert resampling.kernel_size(44100, 16000) == made.numel()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (11127, 16000),
        (44101, 16000),
        (16000, 44101),
        (44056, 16000),
        (7919, 8000),
        (9_999_991, 16000),
    ],
)
def test_rates_without_a_common_factor_build_no_kernel(old: int, new: int) -> None:
    before = resampling._resampler.cache_info()
    samples = tone(old)
    found = audio.resample(samples, old, new)
    assert resampling._resampler.cache_info() == before
    assert found.dtype == np.float32 and found.shape == (math.ceil(len(samples) * new / old),)
    inner = slice(len(found) // 8, -len(found) // 8)
    np.testing.assert_allclose(found[inner], tone(new, 1)[: len(found)][inner], atol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 3, 100, 101, 11127])
def test_the_length_is_rounded_up(count: int) -> None:
    for old, new in ((11127, 16000), (16000, 11127), (44100, 16000)):
        assert len(audio.resample(np.ones(count, np.float32), old, new)) == math.ceil(
            count * new / old
        )


@pytest.mark.parametrize("rate", [0, 1, 999, -16000, 16000.5, math.nan, math.inf, 10_000_001])
def test_rates_that_no_audio_has_are_refused(rate: float) -> None:
    with pytest.raises(
        audio.AudioError, match="the sampling rate is .* Hz, expected an integer from 1000 to"
    ):
        audio.resample(tone(16000), rate, 16000)
