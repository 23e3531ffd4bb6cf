"""Resampling and speed: torchaudio's windowed sinc, or soxr if its kernel would be too large.

torchaudio's kernel has (new rate) x (old rate) elements, both divided by their common factor: 160 x
475 from 44100 to 16000 Hz, but 16000 x 11141 from 11127 Hz, which takes several gigabytes. soxr
needs little memory for any pair.
"""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache

import numpy as np
import torch

from asrtool import torchaudio_adapter
from asrtool.data.audio.decoding import check_rate

# maximum size of torchaudio's kernel; all pairs of common rates stay below 600,000
KERNEL = 1 << 20
WIDTH, ROLLOFF = 6, 0.99  # of torchaudio's kernel


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Band-limited interpolation of (T,) to (ceil(T * to_hz / from_hz),).

    Raises AudioError for an impossible rate.
    """
    old, new = (check_rate(rate, "the samples") for rate in (from_hz, to_hz))
    return samples if old == new else _converted(samples, old, new)


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Play `factor` times as fast, with pitch, as sox's `speed`: (T,) to (ceil(T / factor),).

    The factor is rounded to a fraction of two-digit numbers: exact for 0.9 and 1.1, within 0.01 %
    for others near 1.
    """
    ratio = Fraction(factor).limit_denominator(100)
    if ratio <= 0:
        raise ValueError(f"the speed factor {factor} is too small; expected at least 0.01")
    return samples if ratio == 1 else _converted(samples, ratio.numerator, ratio.denominator)


def _converted(samples: np.ndarray, old: int, new: int) -> np.ndarray:
    if kernel_size(old, new) <= KERNEL:
        return _resampler(old, new)(torch.from_numpy(samples)).numpy()
    import soxr  # imported here: hardly any audio needs it

    resampled = soxr.resample(samples, old, new)
    # soxr rounds the length down where torchaudio rounds up
    return np.pad(resampled, (0, max(0, -(-len(samples) * new // old) - len(resampled))))


def kernel_size(old: int, new: int) -> int:
    """Number of elements of torchaudio's kernel."""
    common = math.gcd(old, new)
    old, new = old // common, new // common
    return new * (2 * math.ceil(WIDTH * old / (min(old, new) * ROLLOFF)) + old)


@lru_cache(maxsize=32)
def _resampler(from_hz: int, to_hz: int) -> torch.nn.Module:
    return torchaudio_adapter.require().transforms.Resample(from_hz, to_hz)
