"""Recordings of single digits -> one recording of several, as if spoken in one breath.

The recordings are cut tightly out of longer ones, some in the middle of a sound, and backgrounds
differ in level and colour. So pauses are filled with noise that has the spectrum of the quietest
moment of the neighbouring recordings, and every joint is a cross-fade: neither a click nor a change
of the background tells where a digit begins.
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
QUIET = RATE // 50  # samples of the stretch that the background is taken from: 20 ms
BACKGROUND = 1 << 14  # samples of noise made for each clip; the longest pause has 8160
LOUDEST = 2
LONGEST = 7  # digits in a string


class Clip(NamedTuple):
    """A recording (T,) and noise (BACKGROUND,) that sounds like its quietest moment."""

    samples: np.ndarray
    background: np.ndarray


def read(recordings: Mapping[tuple, str]) -> tuple[dict[tuple, Clip], list[str]]:
    """The recordings that can be read, at RATE, and a sentence for each that cannot; keys begin
    with the speaker.

    A background LOUDEST times above the speaker's median comes from a recording without a quiet
    moment; it is reduced.
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
    """One <name>.flac each; most of the time is spent waiting for the disk, so several at once."""

    def one(name: str) -> None:
        soundfile.write(folder / f"{name}.flac", strings[name], RATE, subtype="PCM_16")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, strings))


def clip(samples: np.ndarray, noise: np.random.Generator) -> Clip:
    starts = range(0, max(1, len(samples) - QUIET + 1), QUIET // 2)
    quiet = min(
        (samples[start : start + QUIET] for start in starts), key=lambda part: float(part @ part)
    )
    colour = np.abs(np.fft.rfft(quiet * np.hanning(len(quiet))))
    white = np.fft.rfft(noise.standard_normal(BACKGROUND))
    shaped = np.fft.irfft(
        white * np.interp(np.linspace(0, 1, len(white)), np.linspace(0, 1, len(colour)), colour)
    )
    return Clip(samples, shaped * (rms(quiet) / max(rms(shaped), 1e-10)))


def rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples.astype(np.float64) ** 2)))


def deal(deck: Iterable, draw: random.Random) -> list[list]:
    """Every card once, in hands of 1 to `LONGEST`."""
    cards = sorted(deck)
    draw.shuffle(cards)
    hands = []
    while cards:
        size = min(draw.randint(1, LONGEST), len(cards))
        hands.append([cards.pop() for _ in range(size)])
    return hands


def join(clips: Sequence[Clip], draw: random.Random) -> np.ndarray:
    """(T,) clips with pauses between and around them: mostly 30 to 150 ms, one in ten a hesitation
    of up to 500 ms.
    """
    joined = pause(0.05, 0.3, clips[0], clips[0], draw)
    for i, current in enumerate(clips):
        if i:
            bounds = (0.15, 0.5) if draw.random() < 0.1 else (0.03, 0.15)
            joined = cross_fade(joined, pause(*bounds, clips[i - 1], current, draw))
        joined = cross_fade(joined, current.samples)
    joined = cross_fade(joined, pause(0.05, 0.3, clips[-1], clips[-1], draw))
    return joined.clip(-1, 1).astype(np.float32)


def pause(low: float, high: float, before: Clip, after: Clip, draw: random.Random) -> np.ndarray:
    """`low` to `high` seconds, beside what the cross-fades take, in which one background turns into
    the other.
    """
    length = round(draw.uniform(low, high) * RATE) + 2 * FADE
    left, right = (
        noise[start : start + length]
        for noise in (before.background, after.background)
        for start in [draw.randint(0, len(noise) - length)]
    )
    towards = np.linspace(0, 1, length)
    return np.sqrt(1 - towards) * left + np.sqrt(towards) * right


def cross_fade(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Both one after the other, overlapping by FADE samples at constant power."""
    up = np.sqrt(np.linspace(0, 1, FADE))
    return np.concatenate([left[:-FADE], left[-FADE:] * up[::-1] + right[:FADE] * up, right[FADE:]])
