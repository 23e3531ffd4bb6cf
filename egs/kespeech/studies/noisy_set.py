#!/usr/bin/env python
"""Copies a data directory with white noise added to each utterance; every copy is the same.

python studies/noisy_set.py --data data/mini/test --out data/mini/test_noisy --snr-db 10
"""

from __future__ import annotations

import argparse
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from asrtool.data import audio
from asrtool.data.kaldi import datadir
from asrtool.system import file_names, stamp

RATE = 16000


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True, help="data directory to copy")
    options.add_argument("--out", type=Path, required=True, help="data directory to write")
    options.add_argument(
        "--snr-db", type=float, default=10.0, help="signal-to-noise ratio (default: 10)"
    )
    args = options.parse_args()
    with stamp.building(
        args.out, "noisy_set", [args.data], {"snr_db": args.snr_db}, False
    ) as target:
        if target is not None:
            write(args.data, target, args.out.absolute(), args.snr_db)


def write(data: Path, target: Path, final: Path, snr_db: float) -> None:
    """Write the set to `target`; its wav.scp has paths in `final`, to which it is renamed."""
    (target / "audio").mkdir()
    rows = []
    for row in datadir.read(data):
        sound = audio.read(row.audio, *row.stretch, RATE)
        rng = np.random.default_rng(random.Random(row.id).getrandbits(64))
        noise = rng.standard_normal(len(sound))
        noise *= (np.mean(sound**2) / 10 ** (snr_db / 10)) ** 0.5
        loudest = max(1.0, float(np.abs(sound + noise).max()))
        name = file_names.of(row.id, ".flac")
        soundfile.write(target / "audio" / name, (sound + noise) / loudest, RATE)
        rows.append(replace(row, audio=str(final / "audio" / name), recording=None, start=0.0))
    datadir.write(target, rows)


if __name__ == "__main__":
    main()
