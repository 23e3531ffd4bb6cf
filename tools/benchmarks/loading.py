"""How many hours of audio the training loader reads from stored features in an hour of one core.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/loading.py

A corpus of 4 hours, utterances of 2 to 16 seconds, 80 mel bins of random numbers in an ark file; an
epoch is read in batches of 240 seconds, normalised, with SpecAugment and with random gain. One
process, CPU seconds, best of the rounds; the files lie in the page cache after the first round.
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
    rng, rows, left = np.random.default_rng(0), [], hours * 3600
    stats = CmvnStats(BINS)
    with ArkWriter(folder / "feats.ark") as writer:
        while left > 0:
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
            left -= seconds
    return rows, stats.cmvn()


def speed(rows: list[Utterance], cmvn: Cmvn, vocab: Path, augment: AugmentConfig) -> float:
    """Hours of audio per hour of the core, in one epoch."""
    config = DataConfig(batch=BatchConfig(seconds=240), augment=augment, workers=0)
    loader = StepLoader(Dataset(rows, tokenizers.load(vocab), config, cmvn, training=True))
    began, steps = time.process_time(), loader.num_steps(0)
    for step, _ in zip(range(steps), loader.steps(), strict=False):
        assert step < steps
    return sum(row.duration for row in rows) / (time.process_time() - began)


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
        for what, augment in (("as stored", AugmentConfig()), ("gain and SpecAugment", AUGMENTED)):
            best = max(speed(rows, cmvn, folder / "vocab", augment) for _ in range(args.rounds))
            print(f"{what}: {best:.0f} hours of audio an hour and core")


if __name__ == "__main__":
    main()
