#!/usr/bin/env python
"""Writes a data directory with a noisy copy of each utterance at each SNR; label: snr (dB).

    python local/noisy_set.py --data data/test_clean --noise data/noise_eval --snr-db 20 10 0 \\
        --out data/test_noisy
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from asrtool.data import audio, augment, corpus
from asrtool.data.kaldi import datadir
from asrtool.system import file_names, stamp

RATE = 16000


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True, help="data directory with speech")
    options.add_argument("--noise", type=Path, required=True, help="data directory with noises")
    options.add_argument(
        "--snr-db", type=float, nargs="+", required=True, help="signal-to-noise ratios in dB"
    )
    options.add_argument("--out", type=Path, required=True, help="data directory to write")
    args = options.parse_args()
    levels = {"snr_db": args.snr_db}
    with stamp.building(args.out, "noisy_set", [args.data, args.noise], levels, False) as target:
        if target is not None:
            write(args.data, args.noise, args.snr_db, target, args.out.absolute())


def write(data: Path, noise: Path, levels: list[float], target: Path, final: Path) -> None:
    """Write the set to `target`; its wav.scp has paths in `final`, to which it is renamed."""
    (target / "audio").mkdir()
    noises, rows = datadir.read(noise), []
    for row in datadir.read(data):
        speech = audio.read(row.audio, *row.stretch, RATE)
        for level in levels:
            key = f"{row.id}-snr{level:g}"
            rng = augment.generator(0, 0, key, "noisy_set")
            added = augment.excerpt(noises[rng.integers(len(noises))], len(speech), RATE, rng)
            noisy = augment.add_noise(speech, added, level)
            name = file_names.of(key, ".flac")
            soundfile.write(
                target / "audio" / name, noisy / max(1.0, float(np.abs(noisy).max())), RATE
            )
            labels = {**row.labels, "snr": f"{level:g}"}
            path = str(final / "audio" / name)
            rows.append(replace(row, id=key, audio=path, recording=None, start=0.0, labels=labels))
    datadir.write(target, rows)


if __name__ == "__main__":
    corpus.run(main)
