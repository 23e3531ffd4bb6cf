"""The speed of the training loader on stored features, in hours of audio per hour and core.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/loading.py

The corpus has 4 hours in utterances of 2 to 16 seconds: 80 random mel bins in an ark file. An epoch
is read in batches of 240 seconds, normalised, without augmentation and with SpecAugment and random
gain. One process, CPU seconds, best of the rounds; after the first round, the files are in the page
cache.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

from asrtool.data import tokenizers
from asrtool.data.config import AugmentConfig, BatchConfig, DataConfig, SpecAugmentConfig
from asrtool.data.features import ArkWriter, Cmvn, CmvnStats
from asrtool.data.loader import Dataset, StepLoader
from asrtool.types import Utterance

BINS, RATE = 80, 100  # frames a second
AUGMENTED = AugmentConfig(spec_augment=SpecAugmentConfig(num_time_masks=5), gain_db=(-10.0, 6.0))


def make(folder: Path, hours: float) -> tuple[list[Utterance], Cmvn]:
    rng, rows, remaining = np.random.default_rng(0), [], hours * 3600
    stats = CmvnStats(BINS)
    with ArkWriter(folder / "feats.ark") as writer:
        while remaining > 0:
            seconds, name = rng.uniform(2, 16), f"u{len(rows):05}"
            frames = rng.normal(size=(int(seconds * RATE), BINS)).astype(np.float32)
            stats.add(frames)
            text = " ".join(
                "".join(rng.choice(list("abcdefgh"), 5)) for _ in range(int(2.5 * seconds))
            )
            rows.append(
                Utterance(
                    id=name,
                    audio="none.wav",
                    duration=len(frames) / RATE,
                    text=text,
                    speaker=name,
                    features=writer.write(name, frames),
                    num_frames=len(frames),
                )
            )
            remaining -= seconds
    return rows, stats.cmvn()


def speed(rows: list[Utterance], cmvn: Cmvn, vocab: Path, augment: AugmentConfig) -> float:
    """Hours of audio per CPU hour, in one epoch."""
    config = DataConfig(batch=BatchConfig(seconds=240), augment=augment, workers=0)
    loader = StepLoader(Dataset(rows, tokenizers.load(vocab), config, cmvn, training=True))
    start, steps = time.process_time(), loader.num_steps(0)
    for _ in zip(range(steps), loader.steps(), strict=False):
        pass
    return sum(row.duration for row in rows) / (time.process_time() - start)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--hours", type=float, default=4.0)
    options.add_argument("--rounds", type=int, default=3)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, cmvn = make(folder, args.hours)
        (folder / "vocab").mkdir()
        tokenizers.train([row.text for row in rows], "char", 0, folder / "vocab")
        for kind, augment in (("as stored", AugmentConfig()), ("gain and SpecAugment", AUGMENTED)):
            best = max(speed(rows, cmvn, folder / "vocab", augment) for _ in range(args.rounds))
            print(f"{kind}: {best:.0f} hours of audio per hour and core")


if __name__ == "__main__":
    main()
