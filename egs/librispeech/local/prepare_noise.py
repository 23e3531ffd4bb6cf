#!/usr/bin/env python
"""Noise and music -> data directories noise_train and noise_eval with empty texts, for data.augment
and for the report of insertions.

--corpus is MUSAN (https://www.openslr.org/17: musan/{noise,music}/**/*.wav; the tenth of the files
that a hash of their names picks is noise_eval), or a folder of prepared sets {train,eval}/wav.scp,
whose paths may be relative to it. Without --corpus there are synthesised noises: white, pink and
brown, hum, clicks and silence.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from asrtool.data import corpus, prepared
from asrtool.types import Utterance

KINDS = ("white", "pink", "brown", "hum", "clicks", "silence")
RATE = 16000
COUNTS = {"noise_train": 60, "noise_eval": 24}  # synthesised recordings


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    options.add_argument(
        "--corpus", type=Path, help="folder of MUSAN, or of prepared sets train and eval"
    )
    options.add_argument(
        "--out", type=Path, required=True, help="folder to write noise_train/ and noise_eval/ into"
    )
    args = options.parse_args()
    if args.corpus is None:
        sets = {
            name: corpus.Source(
                lambda target, name=name: synthesised(name, args.out / name), [Path(__file__)]
            )
            for name in COUNTS
        }
    elif (args.corpus / "train" / "wav.scp").exists():
        sets = {
            f"noise_{part}": corpus.Source(
                lambda _, part=part: silent(read(args.corpus / part)), [args.corpus / part]
            )
            for part in ("train", "eval")
        }
    else:
        files = sorted(
            path for kind in ("noise", "music") for path in (args.corpus / kind).rglob("*.wav")
        )
        if not files:
            raise corpus.CorpusError(
                f"'{args.corpus}' holds neither noise/ and music/ of MUSAN nor train/wav.scp"
            )
        held = [path for path in files if hashlib.sha256(path.name.encode()).digest()[0] < 26]
        parts = {
            "noise_train": [path for path in files if path not in set(held)],
            "noise_eval": held,
        }
        sets = {
            name: corpus.Source(lambda _, paths=paths: measured(paths), [args.corpus])
            for name, paths in parts.items()
        }
    corpus.write_sets(args.out, sets)


def read(folder: Path) -> list[Utterance]:
    """A prepared set, which needs no more than wav.scp."""
    return prepared.read(folder).utterances


def silent(utterances: Sequence[Utterance]) -> corpus.CorpusSet:
    return corpus.CorpusSet([replace(row, text="") for row in utterances], [])


def measured(paths: Sequence[Path]) -> corpus.CorpusSet:
    rows = [
        Utterance(id=path.stem, audio=str(path.absolute()), duration=0, speaker=path.stem)
        for path in paths
    ]
    return corpus.measured(rows)


def synthesised(name: str, folder: Path) -> corpus.CorpusSet:
    """Recordings of 2 to 10 seconds, written beside the set."""
    audio = folder.with_name(folder.name + "_audio")
    audio.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(COUNTS[name]):
        kind = KINDS[number % len(KINDS)]
        rng = np.random.default_rng([len(name), number])
        path = audio / f"{name}-{kind}-{number:03}.flac"
        soundfile.write(path, sound(kind, rng), RATE)
        paths.append(path)
    return measured(paths)


def sound(kind: str, rng: np.random.Generator) -> np.ndarray:
    """(T,) float32 of a kind, at a random level."""
    size = int(RATE * rng.uniform(2, 10))
    level = 10 ** (rng.uniform(-45, -15) / 20)
    if kind == "silence":
        return (1e-4 * rng.normal(size=size)).astype(np.float32)
    if kind == "hum":
        times, base = np.arange(size) / RATE, rng.uniform(45, 180)
        wave = sum(
            np.sin(2 * np.pi * base * k * times + rng.uniform(0, 6)) / k for k in range(1, 8)
        )
    elif kind == "clicks":
        wave = rng.normal(size=size) * (rng.random(size) < 0.0008)
        wave = np.convolve(wave, np.exp(-np.arange(400) / rng.uniform(10, 100)), "same")
    else:
        power = {"white": 0.0, "pink": 0.5, "brown": 1.0}[kind]
        spectrum = np.fft.rfft(rng.normal(size=size))
        wave = np.fft.irfft(
            spectrum / np.maximum(np.arange(len(spectrum)) * RATE / size, 30) ** power, size
        )
    return np.clip(wave / max(np.sqrt(np.mean(wave**2)), 1e-9) * level, -1, 1).astype(np.float32)


if __name__ == "__main__":
    corpus.run(main)
