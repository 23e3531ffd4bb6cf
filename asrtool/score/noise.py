"""Signal-to-noise ratio of an utterance, estimated from its audio alone."""

from __future__ import annotations

import numpy as np

FRAME = 0.02  # seconds
QUIET = 0.1  # the share of frames that are taken for pauses
LOWEST, HIGHEST = -20.0, 60.0  # dB: beyond, the estimate means nothing


def measure_snr(samples: np.ndarray, rate: int) -> float:
    """dB between speech and background of (T,) samples at `rate` Hz.

    The background is the mean power of the quietest tenth of 20 ms frames, which holds where the
    noise is steady and the utterance has pauses; speech is the mean power less the background's.
    The result is cut to -20 to 60 dB. The estimate orders utterances; it is no calibrated
    measurement.
    """
    size = max(1, round(FRAME * rate))
    frames = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float64)
    if len(frames) == 0:
        return LOWEST
    powers = np.sort(frames.var(axis=1))  # without the offset of a bad sound card
    noise = powers[: max(1, round(QUIET * len(powers)))].mean()
    speech = powers.mean() - noise
    if speech <= 0:
        return LOWEST
    return float(np.clip(10 * np.log10(speech / max(noise, 1e-12)), LOWEST, HIGHEST))
