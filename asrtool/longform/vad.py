"""Voice activity detection by Silero's network (silero-vad on onnxruntime): the extra `vad`.

It finds the pauses in loud noise and music, in which the energy alone does not show them.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

from asrtool.errors import UserError

RATE = 16000  # Hz of the samples that the network reads
SHORTEST = 0.1  # seconds: shorter stretches of speech are ignored


def speech(samples: np.ndarray, pause: float) -> list[tuple[float, float]]:
    """samples (T,) float32 at RATE -> (start, end) of speech in seconds, at least `pause` apart.

    Raises `UserError` if the package is missing.
    """
    model, timestamps = _network()
    segments = timestamps(
        samples,
        model,
        sampling_rate=RATE,
        min_speech_duration_ms=round(1000 * SHORTEST),
        min_silence_duration_ms=round(1000 * pause),
    )
    return [(segment["start"] / RATE, segment["end"] / RATE) for segment in segments]


@functools.cache
def _network() -> tuple:
    threads = torch.get_num_threads()
    try:
        from silero_vad import get_speech_timestamps_sequence, load_silero_vad

        return load_silero_vad(sequence=True), get_speech_timestamps_sequence
    except ImportError as error:
        raise UserError(
            f"windows.detector: silero needs silero-vad and onnxruntime ({error}): pip install -e "
            "'.[vad]', or set windows.detector: energy"
        ) from None
    finally:
        torch.set_num_threads(threads)  # the package sets it to 1 when it is imported
