"""A small set in shards, for the tests of shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from asrtool.bin import make_shards
from asrtool.data.features import ArkWriter
from asrtool.data.kaldi import datadir
from asrtool.types import Utterance

NUM, BINS = 60, 4


def write_source(folder: Path) -> Path:
    """A data directory with audio of 0.2 to 1 seconds in three formats, and features."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, rows = np.random.default_rng(0), []
    with ArkWriter(folder / "feats.1.ark") as writer:
        for n in range(NUM):
            samples = rng.normal(0, 0.1, int(rng.integers(3200, 16000))).astype(np.float32)
            path = folder / f"{n}.{('wav', 'flac', 'ogg')[n % 3]}"
            soundfile.write(path, samples, 16000)
            matrix = rng.normal(size=(len(samples) // 160, BINS)).astype(np.float32)
            row = Utterance(
                id=f"u{n:02}",
                audio=str(path),
                duration=len(samples) / 16000,
                text="ab",
                speaker=f"s{n % 4}",
                labels={"accent": "north"},
                features=writer.write(f"u{n:02}", matrix),
                num_frames=len(matrix),
            )
            rows.append(row)
    datadir.write(folder / "set", rows)
    return folder / "set"


def make(
    source: Path, out: Path, *options: object, of: str = "audio", size_mb: float = 0.2
) -> Path:
    arguments = ["--data", source, "--out", out, "--of", of, "--size-mb", size_mb, *options]
    make_shards.run(make_shards.parse([str(argument) for argument in arguments]))
    return out


def write_packed(source: Path, folder: Path) -> dict[str, Path]:
    """The set in several shards, of audio and of features."""
    return {
        "audio": make(source, folder / "audio"),
        "features": make(source, folder / "features", of="features", size_mb=0.02),
    }
