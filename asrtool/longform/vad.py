"""Where somebody speaks, by Silero's network (silero-vad, run by onnxruntime): the extra `vad`.

It hears speech in loud noise, music and steps, where the energy alone does not tell a pause.
"""

from __future__ import annotations

import functools

import numpy as np
import torch

RATE = 16000  # Hz of the samples that the network hears
SHORTEST = 0.1  # seconds of speech that count


class VadError(RuntimeError):
    """The network is not there."""


def speech(samples: np.ndarray, pause: float) -> list[tuple[float, float]]:
    """samples (T,) float32 at RATE -> start and end in seconds of what is said, with at least
    `pause` seconds between.

    Raises `VadError` where the package is missing.
    """
    model, timestamps = _network()
    segments = timestamps(
        samples,
        model,
        sampling_rate=RATE,
        min_speech_duration_ms=round(1000 * SHORTEST),
        min_silence_duration_ms=round(1000 * pause),
    )
    return [(one["start"] / RATE, one["end"] / RATE) for one in segments]


@functools.cache
def _network() -> tuple:
    threads = torch.get_num_threads()
    try:
        from silero_vad import get_speech_timestamps_sequence, load_silero_vad

        return load_silero_vad(sequence=True), get_speech_timestamps_sequence
    except ImportError as error:
        raise VadError(
            f"windows.detector: silero needs silero-vad and onnxruntime ({error}): pip install -e "
            "'.[vad]', or take "
            "windows.detector: energy"
        ) from None
    finally:
        torch.set_num_threads(threads)  # the package sets it to 1 when it is imported
