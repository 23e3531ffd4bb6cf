"""Kaldi-compatible log-mel filterbank features, batched, on any device.

Per frame of 25 ms every 10 ms (only whole frames count: Kaldi's snip_edges): remove the mean, pre-emphasise x[n] - 0.97 x[n-1], multiply
by the Povey window (Hann ** 0.85), power spectrum of the next power of two, triangular filters on the scale 1127 ln(1 + f / 700), log.

Mean, pre-emphasis and window are linear, and the Povey window is 0 at its first sample, the only one for which Kaldi's pre-emphasis differs
from that of the whole signal. So the signal is pre-emphasised once, and 0.03 times each frame's mean is taken off under the window.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from asrtool.types import Padded

PREEMPHASIS = 0.97
SCALE = 32768.0                              # Kaldi computes on 16-bit integers
FLOOR = torch.finfo(torch.float32).eps       # of a filter's energy, before the log
BLOCK = 512                                  # frames at a time on a CPU: their spectra stay in the cache


@dataclass(frozen=True, kw_only=True)
class FbankConfig:
    num_mel_bins: int = 80
    frame_length_ms: float = 25.0
    frame_shift_ms: float = 10.0
    dither: float = 0.0                      # standard deviation of the noise added, in 16-bit steps
    low_hz: float = 20.0
    high_hz: float = 0.0                     # 0 or below: counted from the Nyquist frequency
    rate: int = 16000                        # of the samples, in Hz

    def __post_init__(self) -> None:
        if self.num_mel_bins < 3:
            raise ValueError(f"num_mel_bins is {self.num_mel_bins}, expected at least 3")
        if self.rate < 1000 or self.dither < 0:
            raise ValueError("rate must be at least 1000 Hz and dither at least 0")
        if self.shift < 1 or self.length < self.shift:
            raise ValueError("expected 0 < frame_shift_ms <= frame_length_ms")
        if not 0 <= self.low_hz < self.top_hz <= self.rate / 2:
            raise ValueError(f"filters from {self.low_hz:g} to {self.top_hz:g} Hz do not fit into 0 to {self.rate / 2:g} Hz")

    @property
    def length(self) -> int:
        """Samples in a frame."""
        return int(self.rate * 0.001 * self.frame_length_ms)

    @property
    def shift(self) -> int:
        """Samples from one frame to the next."""
        return int(self.rate * 0.001 * self.frame_shift_ms)

    @property
    def top_hz(self) -> float:
        return self.high_hz if self.high_hz > 0 else self.rate / 2 + self.high_hz

    def num_frames(self, samples: int) -> int:
        """Frames that fit into so many samples; 0 for less than one frame."""
        return max(0, 1 + (samples - self.length) // self.shift)


class Fbank:
    """Samples (T,) to features (T', F), or Padded (B, T) to Padded (B, T', F); float samples in [-1, 1], features in natural log.

    The result is on the samples' device. Frames beyond an utterance's length are 0. With dither, noise comes from torch's generator.
    """

    def __init__(self, config: FbankConfig) -> None:
        self.config = config
        self._tables: dict[tuple[torch.device, torch.dtype], tuple[Tensor, Tensor]] = {}

    @overload
    def __call__(self, samples: Tensor) -> Tensor: ...

    @overload
    def __call__(self, samples: Padded) -> Padded: ...

    def __call__(self, samples: Tensor | Padded) -> Tensor | Padded:
        if isinstance(samples, Padded):
            features = self._compute(samples.data)
            lengths = torch.div(samples.lengths - self.config.length, self.config.shift, rounding_mode="floor").add(1).clamp(min=0)
            padded = Padded(features, lengths)
            return Padded(features.masked_fill(~padded.mask[:, :, None], 0.0), lengths)
        return self._compute(samples[None])[0]

    def _compute(self, samples: Tensor) -> Tensor:
        """(B, T) to (B, T', F)."""
        config = self.config
        samples = samples * SCALE
        if config.dither:
            samples = samples + config.dither * torch.randn_like(samples)
        num_frames = config.num_frames(samples.shape[1])
        features = samples.new_empty(samples.shape[0], num_frames, config.num_mel_bins)
        if not num_frames:
            return features
        emphasised = torch.nn.functional.pad(samples[:, 1:] - PREEMPHASIS * samples[:, :-1], (1, 0))
        means = samples.unfold(1, config.length, config.shift).mean(-1, keepdim=True) * (1 - PREEMPHASIS)
        frames = emphasised.unfold(1, config.length, config.shift)
        window, filters = self._get_tables(samples)
        size = fft_size(config)
        block = BLOCK if samples.device.type == "cpu" else num_frames
        for row in range(samples.shape[0]):
            for start in range(0, num_frames, block):
                part = (frames[row, start:start + block] - means[row, start:start + block]) * window
                spectrum = torch.view_as_real(torch.fft.rfft(part, size)).square().sum(-1)
                torch.matmul(spectrum, filters, out=features[row, start:start + block])
        return features.clamp_(min=FLOOR).log_()

    def _get_tables(self, like: Tensor) -> tuple[Tensor, Tensor]:
        key = (like.device, like.dtype)
        if key not in self._tables:
            self._tables[key] = (povey_window(self.config.length).to(like), mel_filters(self.config).to(like))
        return self._tables[key]


def fft_size(config: FbankConfig) -> int:
    return 1 << (config.length - 1).bit_length()


def povey_window(length: int) -> Tensor:
    """(length,) float64: a Hann window to the power of 0.85, which does without Hamming's steps at the edges."""
    return torch.hann_window(length, periodic=False, dtype=torch.float64) ** 0.85


def mel(hz: Tensor) -> Tensor:
    return 1127.0 * torch.log1p(hz / 700.0)


def mel_filters(config: FbankConfig) -> Tensor:
    """(fft_size / 2 + 1, F) float64: triangles evenly spaced on the mel scale, straight in mel; the Nyquist bin belongs to none."""
    size = fft_size(config)
    low, high = mel(torch.tensor([config.low_hz, config.top_hz], dtype=torch.float64)).tolist()
    step = (high - low) / (config.num_mel_bins + 1)
    centres = low + step * torch.arange(1, config.num_mel_bins + 1, dtype=torch.float64)
    bins = mel(torch.arange(size // 2 + 1, dtype=torch.float64) * (config.rate / size))
    filters = (1 - (bins[:, None] - centres).abs() / step).clamp(min=0)
    filters[-1] = 0
    return filters
