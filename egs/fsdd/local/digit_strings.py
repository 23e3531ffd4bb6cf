"""Concatenates recordings of single digits into one recording, as if spoken in one breath.

The recordings are cut tightly out of longer ones, some in the middle of a sound, and their
background noise differs in level and spectrum. Pauses are therefore filled with noise that has the
spectrum of the quietest moment of the neighbouring recordings, and joins are cross-faded. Neither a
click nor a change of the background reveals where a digit begins.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from asrtool.data import audio

RATE = 16000
FADE = RATE // 200  # samples of a cross-fade: 5 ms
QUIET = RATE // 50  # samples of the frame that the background is estimated from: 20 ms
BACKGROUND = 1 << 14  # samples of noise generated for each clip; the longest pause has 8160
LOUDEST = 2  # limit of a clip's background, relative to the median of its speaker
LONGEST = 7  # digits in a string


class Clip(NamedTuple):
    """A recording (T,) and noise (BACKGROUND,) that sounds like its quietest moment."""

    samples: np.ndarray
    background: np.ndarray


def read(recordings: Mapping[tuple, str]) -> tuple[dict[tuple, Clip], list[str]]:
    """The readable recordings, at RATE, and a sentence for each unreadable one.

    Keys begin with the speaker. A background more than LOUDEST times as loud as the median of the
    speaker is reduced to that: such a recording has no quiet moment.
    """
    clips, left_out = {}, []
    noise = np.random.default_rng(0)
    for key, path in recordings.items():
        try:
            clips[key] = clip(audio.read(path, rate=RATE), noise)
        except audio.AudioError as error:
            left_out.append(f"recording {error}")
    for speaker in {key[0] for key in clips}:
        limit = LOUDEST * float(
            np.median([rms(clip.background) for key, clip in clips.items() if key[0] == speaker])
        )
        for key in [key for key in clips if key[0] == speaker]:
            samples, background = clips[key]
            clips[key] = Clip(samples, background * min(1, limit / max(rms(background), 1e-10)))
    return clips, left_out


def write(folder: Path, strings: Mapping[str, np.ndarray]) -> None:
    """Write <name>.flac for each string; in threads, since most of the time is disk access."""

    def write_one(name: str) -> None:
        soundfile.write(folder / f"{name}.flac", strings[name], RATE, subtype="PCM_16")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_one, strings))


def clip(samples: np.ndarray, noise: np.random.Generator) -> Clip:
    """`samples` (T,) with white noise shaped by the spectrum of their quietest frame."""
    starts = range(0, max(1, len(samples) - QUIET + 1), QUIET // 2)
    quiet = min(
        (samples[start : start + QUIET] for start in starts), key=lambda part: float(part @ part)
    )
    spectrum = np.abs(np.fft.rfft(quiet * np.hanning(len(quiet))))
    white = np.fft.rfft(noise.standard_normal(BACKGROUND))
    points, known = np.linspace(0, 1, len(white)), np.linspace(0, 1, len(spectrum))
    shaped = np.fft.irfft(white * np.interp(points, known, spectrum))
    return Clip(samples, shaped * (rms(quiet) / max(rms(shaped), 1e-10)))


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


def group(items: Iterable, rng: random.Random) -> list[list]:
    """All items in random order, each once, in groups of 1 to `LONGEST`."""
    remaining = sorted(items)
    rng.shuffle(remaining)
    groups = []
    while remaining:
        size = min(rng.randint(1, LONGEST), len(remaining))
        groups.append([remaining.pop() for _ in range(size)])
    return groups


def join(clips: Sequence[Clip], rng: random.Random) -> np.ndarray:
    """(T,) the clips with pauses between and around them.

    Pauses between clips have 30 to 150 ms, one in ten is a hesitation of 150 to 500 ms; those at
    the ends have 50 to 300 ms.
    """
    joined = pause(0.05, 0.3, clips[0], clips[0], rng)
    for i, current in enumerate(clips):
        if i:
            bounds = (0.15, 0.5) if rng.random() < 0.1 else (0.03, 0.15)
            joined = cross_fade(joined, pause(*bounds, clips[i - 1], current, rng))
        joined = cross_fade(joined, current.samples)
    joined = cross_fade(joined, pause(0.05, 0.3, clips[-1], clips[-1], rng))
    return joined.clip(-1, 1).astype(np.float32)


def pause(low: float, high: float, before: Clip, after: Clip, rng: random.Random) -> np.ndarray:
    """(T,) a pause of `low` to `high` seconds, plus cross-fades; the background changes within."""
    length = round(rng.uniform(low, high) * RATE) + 2 * FADE
    left, right = (
        noise[start : start + length]
        for noise in (before.background, after.background)
        for start in [rng.randint(0, len(noise) - length)]
    )
    share = np.linspace(0, 1, length)
    return np.sqrt(1 - share) * left + np.sqrt(share) * right


def cross_fade(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """`left` followed by `right`, overlapping by FADE samples at constant power."""
    up = np.sqrt(np.linspace(0, 1, FADE))
    return np.concatenate([left[:-FADE], left[-FADE:] * up[::-1] + right[:FADE] * up, right[FADE:]])
