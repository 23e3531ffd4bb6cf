"""From the dry output of a synthesiser to a recording: vocal tract, microphone, room, noise, level.

All operations are linear and act on whole utterances in the frequency domain, so numpy is enough.
Signals are (T,) float32.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

SAMPLE_RATE_HZ = 16000

# 20 ms are 441 samples at espeak-ng's 22,050 Hz and 320 at 16 kHz.
_BLOCK_IN, BLOCK_OUT = 441, 320

NOISES = ("white", "pink", "brown", "speech")
_SLOPES = {"white": 0.0, "pink": -0.5, "brown": -1.0}


@dataclass(frozen=True)
class Conditions:
    """How a set is recorded: shares of utterances (0 to 1) and ranges of uniform distributions.

    tilt_db: spectral tilt of the device in dB per octave, added to that of the speaker's
    microphone.
    """

    noise_share: float
    snr_db: tuple[float, float]
    reverberation_share: float
    rt60_seconds: tuple[float, float]
    direct_to_reverberant_db: tuple[float, float]
    tilt_db: float = 0.0


LIGHT = Conditions(
    noise_share=0.6,
    snr_db=(15.0, 30.0),
    reverberation_share=0.4,
    rt60_seconds=(0.1, 0.4),
    direct_to_reverberant_db=(6.0, 15.0),
)
HEAVY = Conditions(
    noise_share=1.0,
    snr_db=(10.0, 20.0),
    reverberation_share=0.7,
    rt60_seconds=(0.2, 0.4),
    direct_to_reverberant_db=(3.0, 10.0),
)
# The noise floor of a quiet recording. Without it, pauses would be digital silence, unlike those of
# any microphone.
_FLOOR_SNR_DB = (40.0, 50.0)


def write(recording: np.ndarray, path: Path) -> None:
    """Write int16 samples at 16 kHz, as flac or wav by the extension of `path`."""
    # Encoded in memory, because Python raises an error on a full disk and libsndfile may not.
    encoded = io.BytesIO()
    soundfile.write(
        encoded, recording, SAMPLE_RATE_HZ, format=path.suffix[1:].upper(), subtype="PCM_16"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.getvalue())


def record(
    dry: np.ndarray, conditions: Conditions, level_db: float, rng: np.random.Generator
) -> np.ndarray:
    """A recording of `dry` (16 kHz) as int16 samples; its speech has the RMS `level_db` (dBFS)."""
    before, after = (rng.uniform(0.1, 0.35, size=2) * SAMPLE_RATE_HZ).astype(int)
    signal = np.pad(dry, (before, after))
    if rng.random() < conditions.reverberation_share:
        ratio = rng.uniform(*conditions.direct_to_reverberant_db)
        signal = reverberate(signal, room(rng.uniform(*conditions.rt60_seconds), ratio, rng))
    speech_rms = np.sqrt(np.mean(np.square(dry)))
    signal = signal + background(signal, conditions, speech_rms, rng)
    gain = 10 ** (level_db / 20) / speech_rms
    # limited, so that the peaks of loud speech do not clip
    gain = min(gain, 0.95 / np.abs(signal).max())
    return np.round(signal * (gain * 32767)).astype(np.int16)


def background(
    signal: np.ndarray, conditions: Conditions, speech_rms: float, rng: np.random.Generator
) -> np.ndarray:
    """The background noise of `signal`, whose speech has the RMS `speech_rms`."""
    noisy = rng.random() < conditions.noise_share
    snr_db = rng.uniform(*(conditions.snr_db if noisy else _FLOOR_SNR_DB))
    kind = NOISES[rng.integers(len(NOISES))] if noisy else "white"
    return noise(kind, signal, rng) * np.float32(speech_rms * 10 ** (-snr_db / 20))


def trim(signal: np.ndarray, *, below_peak_db: float = 45.0) -> np.ndarray:
    """`signal` without leading and trailing samples that are `below_peak_db` below the peak."""
    loud = np.flatnonzero(np.abs(signal) > np.abs(signal).max() * 10 ** (-below_peak_db / 20))
    return signal[loud[0] : loud[-1] + 1]


def resample(signal: np.ndarray, *, block: int = BLOCK_OUT, tilt_db: float = 0.0) -> np.ndarray:
    """From 22,050 Hz to 16 kHz, by truncating the spectrum of the (zero-padded) utterance.

    block: output samples per 20 ms of input. 320 keeps the voice. Fewer raise pitch and formants
    and shorten the speech, like a shorter vocal tract; more do the opposite.
    tilt_db: spectral tilt of the microphone, in dB per octave around 1 kHz.
    """
    count = _fast_length(-(-signal.size // _BLOCK_IN) + 2)
    spectrum = np.fft.rfft(signal, count * _BLOCK_IN)[: count * block // 2 + 1]
    frequency_hz = np.linspace(0, SAMPLE_RATE_HZ / 2, spectrum.size, dtype=np.float32)
    gain = (np.clip(frequency_hz, 100, None) / 1000) ** np.float32(tilt_db / (20 * np.log10(2)))
    # Soft edges: a low cut as in every microphone, and no ringing at the Nyquist frequency.
    gain *= np.clip(frequency_hz / 60, 0, 1) * np.clip(
        (SAMPLE_RATE_HZ / 2 - frequency_hz) / 300, 0, 1
    )
    resampled = np.fft.irfft(spectrum * gain, count * block) * (block / _BLOCK_IN)
    return resampled[: -(-signal.size * block // _BLOCK_IN)].astype(np.float32)


def room(
    rt60_seconds: float, direct_to_reverberant_db: float, rng: np.random.Generator
) -> np.ndarray:
    """An impulse response: the direct sound, then noise that decays by 60 dB in `rt60_seconds`."""
    time = np.arange(int(rt60_seconds * SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ
    tail = rng.standard_normal(time.size) * 10 ** (-3 * time / rt60_seconds)
    tail[: int(rng.uniform(0.002, 0.01) * SAMPLE_RATE_HZ)] = 0
    tail *= 10 ** (-direct_to_reverberant_db / 20) / np.sqrt(np.sum(np.square(tail)))
    tail[0] = 1
    return tail.astype(np.float32)


def reverberate(signal: np.ndarray, response: np.ndarray) -> np.ndarray:
    """`signal` convolved with `response`, cut to the length of `signal`."""
    size = _fast_length(signal.size + response.size)
    spectrum = np.fft.rfft(signal, size) * np.fft.rfft(response, size)
    return np.fft.irfft(spectrum, size)[: signal.size].astype(np.float32)


def noise(kind: str, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of RMS 1, as long as `signal`.

    white, pink and brown fall by 0, 3 and 6 dB per octave; speech has the spectrum of `signal`
    with random phases, and therefore masks it best.
    """
    size = _fast_length(signal.size)
    bins = size // 2 + 1
    random = rng.standard_normal(bins, dtype=np.float32) + 1j * rng.standard_normal(
        bins, dtype=np.float32
    )
    if kind == "speech":
        shape = np.abs(np.fft.rfft(signal, size))
    else:
        # Flat below 50 Hz, where brown noise would have nearly all of its energy.
        shape = np.maximum(np.arange(bins), 50 * size / SAMPLE_RATE_HZ) ** _SLOPES[kind]
    shaped = np.fft.irfft(random * shape, size)[: signal.size]
    return (shaped / np.sqrt(np.mean(np.square(shaped)))).astype(np.float32)


def _fast_length(size: int) -> int:
    """The smallest even number >= `size` with the prime factors 2, 3 and 5: a fast FFT length."""
    size += size % 2
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 2
