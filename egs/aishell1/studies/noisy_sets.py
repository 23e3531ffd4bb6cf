"""Writes copies of a test set with noise at 20, 10 and 0 dB and with reverberation.

The copies are next to the set: <set>_snr20 ... <set>_room. The noise is stationary and has the mean
spectrum of the set's speech: of all stationary noise at a level, such noise masks speech best. The
impulse response of the room is noise that decays by 60 dB in half a second, with half the energy of
the direct sound (-3 dB). Random numbers are seeded by the utterance id, so the copies are always
the same.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from asrtool.data import audio
from asrtool.data.augment import add_noise, add_room, generator, power
from asrtool.data.kaldi import datadir
from asrtool.system import file_names
from asrtool.types import Utterance

RATE, POINTS = 16000, 1024
SNRS = (20, 10, 0)
# seconds until -60 dB; energy of the direct sound divided by that of all reflections
REVERBERATION, DIRECT = 0.5, 2.0


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True, help="data directory of the set")
    args = options.parse_args(argv)
    names = [f"snr{snr}" for snr in SNRS] + ["room"]
    folders = {name: args.data.with_name(f"{args.data.name}_{name}") for name in names}
    if all((folder / "text").exists() for folder in folders.values()):
        print(f"{', '.join(map(str, folders.values()))} already exist")
        return
    utterances = datadir.read(args.data)
    shape = spectrum(utterances)
    written: dict[str, list[Utterance]] = {name: [] for name in names}
    for utterance in utterances:
        samples = read(utterance)
        for name in names:
            path = folders[name] / "audio" / file_names.of(utterance.id, ".flac")
            path.parent.mkdir(parents=True, exist_ok=True)
            noisy = corrupt(samples, name, shape, utterance.id)
            soundfile.write(path, noisy / max(1.0, np.abs(noisy).max()), RATE)
            copy = replace(
                utterance, audio=str(path), start=0.0, recording=None, duration=len(samples) / RATE
            )
            written[name].append(copy)
    for name, rows in written.items():
        datadir.write(folders[name], rows)
        print(f"{folders[name]}: {len(rows)} utterances")


def read(utterance: Utterance) -> np.ndarray:
    return audio.read(utterance.audio, *utterance.stretch, RATE)


def spectrum(utterances: list[Utterance]) -> np.ndarray:
    """(POINTS / 2 + 1,) mean magnitude spectrum of the first 200 utterances, up to a factor."""
    total = np.zeros(POINTS // 2 + 1)
    for utterance in utterances[:200]:
        samples = read(utterance)
        samples = np.pad(samples, (0, -len(samples) % POINTS))
        total += np.abs(np.fft.rfft(samples.reshape(-1, POINTS))).mean(0)
    return total / len(utterances)


def corrupt(samples: np.ndarray, name: str, shape: np.ndarray, key: str) -> np.ndarray:
    """(T,) float32 -> (T,) float32 with the noise `name`; `key` seeds the random numbers."""
    rng = generator(0, 0, key, name)
    if name == "room":
        return add_room(samples, response(rng))
    noise = rng.standard_normal(len(samples) + POINTS)
    gains = np.interp(np.fft.rfftfreq(len(noise)), np.fft.rfftfreq(POINTS), shape)
    noise = np.fft.irfft(np.fft.rfft(noise) * gains, len(noise))[: len(samples)]
    return add_noise(samples, noise.astype(np.float32), float(name.removeprefix("snr")))


def response(rng: np.random.Generator) -> np.ndarray:
    """(R,) an impulse response: the direct sound, then decaying noise."""
    times = np.arange(int(REVERBERATION * RATE)) / RATE
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / REVERBERATION)
    tail[: RATE // 500] = 0  # two milliseconds until the first reflection
    tail *= np.sqrt(1 / DIRECT / (power(tail) * len(tail)))
    tail[0] = 1.0
    return tail.astype(np.float32)


if __name__ == "__main__":
    main()
