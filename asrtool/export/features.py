"""Fbank inside a graph, and its description for programs that compute it themselves.

Up to the power spectrum everything is linear in the samples of a frame: remove the mean (I - 1/N),
pre-emphasise (P), window (W), transform (F). So the spectrum is one convolution,

    S = F W P (I - 1/N) x

with a kernel as long as a frame and a stride of its shift, which every runtime has.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, pad

from asrtool.data.fbank import (
    FLOOR,
    PREEMPHASIS,
    FbankConfig,
    mel_filters,
    mirrored,
    povey_window,
)
from asrtool.types import Padded


class FbankGraph(nn.Module):
    """Samples (B, T) in [-1, 1] -> log-mel features: those of `asrtool.data.fbank.Fbank` without
    dither, but for rounding. Rows have up to three frames of padding more.
    """

    def __init__(self, config: FbankConfig) -> None:
        super().__init__()
        self.config = config
        basis = spectrum(config).to(torch.float32)
        self.register_buffer("basis", basis[:, None], persistent=False)  # (fft_size, 1, length)
        self.register_buffer("filters", mel_filters(config).to(torch.float32), persistent=False)

    def forward(self, samples: Tensor, lengths: Tensor) -> Padded:
        """samples (B, T), lengths (B,) -> (B, T', F) and the number of frames of each row."""
        config = self.config
        if config.snip_edges:
            samples = pad(samples, (0, config.length - 1))  # one frame at least
            counts = (lengths - config.length + config.shift).clamp(min=0) // config.shift
        else:
            samples = mirrored(samples, lengths, config.before, config.length)
            counts = (lengths + config.shift // 2) // config.shift
        parts = conv1d(samples[:, None], self.basis, stride=config.shift)  # (B, fft_size, T')
        power = parts.square().unflatten(1, (2, -1)).sum(1)
        energies = power.transpose(1, 2) @ self.filters
        return Padded(energies.clamp(min=FLOOR).log(), counts)


def spectrum(config: FbankConfig) -> Tensor:
    """(fft_size, length) float64: samples of a frame -> real parts, then imaginary parts, of its
    spectrum without the bin at Nyquist.
    """
    size = config.length
    eye = torch.eye(size, dtype=torch.float64)
    centre = eye - 1 / size
    emphasis = eye - PREEMPHASIS * torch.diag(torch.ones(size - 1, dtype=torch.float64), -1)
    window = torch.diag(povey_window(size) * config.sample_scale)
    steps = torch.arange(size, dtype=torch.float64)
    bins = torch.arange(config.fft_size // 2, dtype=torch.float64)
    angles = -2 * torch.pi * torch.outer(bins, steps) / config.fft_size
    return torch.cat([angles.cos(), angles.sin()]) @ window @ emphasis @ centre


def features_of(config: FbankConfig) -> dict:
    """What another program needs to make the same features, by Kaldi's names."""
    return {
        "sample_scale": config.sample_scale,  # samples in [-1, 1] are multiplied by it
        "frame_length": config.length,  # samples
        "frame_shift": config.shift,  # samples
        # true: frames of n samples: 1 + (n - frame_length) // frame_shift; false: (n + frame_shift
        # // 2) // frame_shift, of which the first begins with `mirrored` samples
        "snip_edges": config.snip_edges,
        "mirrored": config.before,
        "remove_dc_offset": True,
        "preemphasis": round(PREEMPHASIS, 4),
        "window": "povey",  # Hann ** 0.85
        "fft_size": config.fft_size,
        "mel": "1127 ln(1 + f / 700)",
        "mel_bins": config.num_mel_bins,
        "low_hz": config.low_hz,
        "high_hz": config.top_hz,
        "power": 2,
        "log": "natural",
        "floor": FLOOR,  # of a filter's energy, before the logarithm
        "dither": 0.0,
    }
