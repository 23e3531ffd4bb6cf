"""Kaldi-compatible log-mel filterbank features, batched, on any device.

There is a frame of 25 ms every 10 ms. Only whole frames count (Kaldi's `snip_edges`), or there is
one for each 10 ms, with the samples mirrored at both ends. Per frame: remove the mean,
pre-emphasise x[n] - 0.97 x[n-1], multiply by the Povey window (Hann ** 0.85), take the power
spectrum of the next power of two, sum it under triangles that are evenly spaced on the scale 1127
ln(1 + f / 700), and take the logarithm.

Mean, pre-emphasis and window are linear, and the Povey window is 0 at its first sample, the only
one for which Kaldi's pre-emphasis of a frame differs from that of the whole signal. So the signal
is pre-emphasised once, and each frame drops its first sample and subtracts 0.03 times its mean.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import lru_cache
from types import MappingProxyType
from typing import Literal, overload

import torch
from torch import Tensor

from asrtool.registry import OMIT, bounded
from asrtool.types import Padded

# rounded to float32, so that 1 - PREEMPHASIS matches what float32 samples are multiplied by
PREEMPHASIS = torch.tensor(0.97).item()
SCALE = 32768.0  # Kaldi computes on 16-bit integers; dither is counted in their steps
FLOOR = torch.finfo(torch.float32).eps  # lower limit of a filter's energy before the logarithm
POVEY = 0.85  # exponent of the Hann window
# frames computed at once, so that their spectra fit into the cache
BLOCK_CPU, BLOCK_GPU = 256, 1 << 16
# name -> settings that it stands for; the others keep their defaults, but for PRESET_FREE
PRESETS = MappingProxyType(
    # what sherpa-onnx and icefall compute
    {"sherpa": {"high_hz": -400.0, "snip_edges": False, "sample_scale": 1.0}}
)
PRESET_FREE = ("num_mel_bins", "rate")  # settings that go with any preset


@dataclass(frozen=True, kw_only=True)
class FbankConfig:
    num_mel_bins: int = bounded(80, least=1)
    frame_length_ms: float = bounded(25.0, least=0)
    frame_shift_ms: float = bounded(10.0, least=0)
    dither: float = 0.0  # standard deviation of added noise, in steps of 16-bit audio
    low_hz: float = 20.0
    high_hz: float = 0.0  # 0 or below: relative to the Nyquist frequency
    rate: int = 16000  # sampling rate in Hz
    # true: whole frames only; false: samples // shift frames, rounded, mirrored at the ends
    snip_edges: bool = True
    # samples in [-1, 1] are multiplied by it; matters where an energy is below the floor, and for
    # programs that compute on floats
    sample_scale: float = SCALE
    # sherpa: high_hz: -400, snip_edges: false, sample_scale: 1
    preset: Literal["sherpa"] | None = field(default=None, metadata=OMIT)

    def __post_init__(self) -> None:
        if self.preset is not None:
            self._take_preset()
        if not self.sample_scale > 0:
            raise ValueError(f"sample_scale is {self.sample_scale:g}, expected more than 0")
        if self.num_mel_bins < 3:
            raise ValueError(f"num_mel_bins is {self.num_mel_bins}, expected at least 3")
        if self.rate < 1000 or self.dither < 0:
            raise ValueError("rate must be at least 1000 Hz and dither at least 0")
        if not 1 <= self.shift <= self.length:
            raise ValueError("expected 0 < frame_shift_ms <= frame_length_ms")
        if not 0 <= self.low_hz < self.top_hz <= self.rate / 2:
            limits = f"{self.low_hz:g} to {self.top_hz:g} Hz"
            raise ValueError(f"filters from {limits} are not within 0 to {self.rate / 2:g} Hz")

    def stamped(self) -> dict[str, object]:
        """What the stamp of a feature folder counts. Settings that came later only count where they
        are not the default: folders from before them stay up to date.
        """
        return {
            setting.name: value
            for setting in fields(self)
            if (value := getattr(self, setting.name)) != setting.default
            or setting.name not in ("snip_edges", "sample_scale", "preset")
        }

    def _take_preset(self) -> None:
        """Settings in place of their name: those that were given beside it must agree."""
        wanted = PRESETS[self.preset]
        for setting in fields(self):
            name = setting.name
            if name in ("preset", *PRESET_FREE):
                continue
            value, found = wanted.get(name, setting.default), getattr(self, name)
            if found not in (setting.default, value):
                raise ValueError(
                    f"preset: {self.preset} means {name}: {value}, but {name} is {found}: leave "
                    "out one of the two"
                )
            object.__setattr__(self, name, value)
        object.__setattr__(self, "preset", None)

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

    @property
    def fft_size(self) -> int:
        return 1 << (self.length - 1).bit_length()

    @property
    def before(self) -> int:
        """Mirrored samples that the first frame begins with."""
        return 0 if self.snip_edges else self.length // 2 - self.shift // 2

    def num_frames(self, samples: int) -> int:
        """Number of frames in so many samples; 0 for less than one frame."""
        if not self.snip_edges:
            return (samples + self.shift // 2) // self.shift
        return max(0, 1 + (samples - self.length) // self.shift)

    def frames_within(self, samples: int) -> int:
        """How many of the first frames need none of the samples that follow these."""
        return max(0, 1 + (samples + self.before - self.length) // self.shift)


class Fbank:
    """Samples (T,) to log-mel features (T', F), or Padded (B, T) to Padded (B, T', F).

    Samples are floats in [-1, 1]; the features are on their device. Frames beyond an utterance's
    length are 0. With dither, the noise is drawn from torch's generator.
    """

    def __init__(self, config: FbankConfig) -> None:
        self.config = config

    @overload
    def __call__(self, samples: Tensor) -> Tensor: ...

    @overload
    def __call__(self, samples: Padded) -> Padded: ...

    @torch.no_grad()
    def __call__(self, samples: Tensor | Padded) -> Tensor | Padded:
        if not isinstance(samples, Padded):
            lengths = torch.tensor([len(samples)], device=samples.device)
            return self._compute(samples[None], lengths)[0]
        counts = [self.config.num_frames(length) for length in samples.lengths.tolist()]
        features = Padded(self._compute(*samples), samples.lengths.new_tensor(counts))
        return features._replace(data=features.data.masked_fill_(~features.mask[:, :, None], 0.0))

    def _compute(self, samples: Tensor, lengths: Tensor) -> Tensor:
        """(B, T), lengths (B,) to (B, T', F)."""
        config, rows = self.config, samples.shape[0]
        total = config.num_frames(samples.shape[1])
        features = samples.new_empty(rows, total, config.num_mel_bins)
        if features.numel() == 0:
            return features
        if config.dither:
            samples = samples + config.dither / SCALE * torch.randn_like(samples)
        if not config.snip_edges:
            samples = mirrored(samples, lengths, config.before, config.length)
        # the whole signal at once; a frame is then `length - 1` samples, without the one whose
        # window is 0
        emphasised = torch.sub(samples[:, 1:], samples[:, :-1], alpha=PREEMPHASIS)
        frames = emphasised.unfold(1, config.length - 1, config.shift)
        means = (
            samples.unfold(1, config.length, config.shift)
            .mean(-1, keepdim=True)
            .mul_(1 - PREEMPHASIS)
        )

        window, filters = tables(config, samples.device, samples.dtype)
        block = max(1, (BLOCK_CPU if samples.device.type == "cpu" else BLOCK_GPU) // rows)
        # one buffer for all blocks: the FFT padding stays 0, only the first length - 1 samples are
        # rewritten
        padded = samples.new_zeros(rows, min(block, total), config.fft_size)
        for first in range(0, total, block):
            part = slice(first, min(first + block, total))
            inside = padded[:, : part.stop - first]
            torch.sub(frames[:, part], means[:, part], out=inside[..., : config.length - 1]).mul_(
                window
            )
            # power without a square root; the bin at Nyquist is under no filter
            squares = torch.view_as_real(torch.fft.rfft(inside)[..., :-1]).square_()
            features[:, part] = (squares[..., 0] + squares[..., 1]) @ filters
        return features.clamp_(min=FLOOR).log_()


@lru_cache(maxsize=8)
def tables(config: FbankConfig, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The window (length - 1,), which also scales, and filters (fft_size / 2, F)."""
    window = povey_window(config.length)[1:] * config.sample_scale
    return window.to(device, dtype), mel_filters(config).to(device, dtype)


def mirrored(samples: Tensor, lengths: Tensor, before: int, behind: int) -> Tensor:
    """(B, T), lengths (B,) -> (B, before + T + behind): each row mirrored at both of its ends, the
    samples at the ends included: 1 0 | 0 1 2 ... n-1 | n-1 n-2 ...
    """
    edges = samples.new_zeros(samples.shape[0], before + samples.shape[1] + behind)
    edges[:, before : before + samples.shape[1]] = samples
    size = lengths[:, None]
    steps = torch.arange(before + behind, device=samples.device)
    # where in a row the mirrored samples lie: -before ... -1, n ... n + behind - 1
    at = torch.where(steps < before, steps - before, size + steps - before)
    phase = at % (2 * size).clamp(min=1)  # short rows are mirrored more than once
    source = torch.where(phase < size, phase, 2 * size - 1 - phase).clamp(min=0)
    return edges.scatter_(1, at + before, samples.gather(1, source))


def povey_window(length: int) -> Tensor:
    """(length,) float64: the Hann window to the power of 0.85."""
    return torch.hann_window(length, periodic=False, dtype=torch.float64) ** POVEY


def mel(hz: Tensor) -> Tensor:
    """Frequencies in Hz -> Kaldi's mel scale."""
    return 1127.0 * torch.log1p(hz / 700.0)


def mel_filters(config: FbankConfig) -> Tensor:
    """(fft_size / 2, F) float64: triangles on the mel scale, without the bin at Nyquist."""
    low, high = mel(torch.tensor([config.low_hz, config.top_hz], dtype=torch.float64)).tolist()
    step = (high - low) / (config.num_mel_bins + 1)
    centres = low + step * torch.arange(1, config.num_mel_bins + 1, dtype=torch.float64)
    bins = mel(
        torch.arange(config.fft_size // 2, dtype=torch.float64) * (config.rate / config.fft_size)
    )
    return (1 - (bins[:, None] - centres).abs() / step).clamp(min=0)
