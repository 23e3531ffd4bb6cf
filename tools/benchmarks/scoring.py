"""Time and memory of the scoring command on a million utterances of ten words.

    PYTHONPATH=. python tools/benchmarks/scoring.py --utterances 1000000

The vocabulary has 20,000 words, the set 1,000 speakers; errors are 10 % substitutions, 2 %
deletions and 2 % insertions. The command runs in its own process and includes intervals by
utterance and by speaker, 1,000 draws each, and writing both files.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

WORDS, SPEAKERS, LENGTH = 20_000, 1_000, 10
RATES = (0.86, 0.10, 0.02, 0.02)  # correct, substituted, deleted, followed by an insertion


def write(folder: Path, utterances: int, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    words = [f"w{number}" for number in range(WORDS)]
    (folder / "data").mkdir()
    with (
        open(folder / "data" / "text", "w") as reference,
        open(folder / "data" / "utt2spk", "w") as speakers,
        open(folder / "hyp", "w") as hypothesis,
    ):
        for number in range(utterances):
            speaker = f"s{number * SPEAKERS // utterances:04d}"
            spoken = [words[index] for index in rng.integers(0, WORDS, LENGTH)]
            kinds = rng.choice(4, LENGTH, p=RATES)
            heard = []
            for word, kind in zip(spoken, kinds, strict=True):
                other = words[int(rng.integers(0, WORDS))]
                heard += ([word], [other], [], [word, other])[kind]
            name = f"{speaker}-{number:07d}"
            reference.write(f"{name} {' '.join(spoken)}\n")
            hypothesis.write(f"{name} {' '.join(heard)}\n")
            speakers.write(f"{name} {speaker}\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--utterances", type=int, default=1_000_000)
    parser.add_argument("--alignment", default="levenshtein")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), options.utterances)
        command = [
            sys.executable,
            "-m",
            "asrtool.bin.score",
            "--alignment",
            options.alignment,
            "data",
            "hyp",
        ]
        paths = {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **paths}, text=True, capture_output=True
        )
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise SystemExit(done.stderr)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(done.stdout)
    print(
        f"{options.utterances} utterances: {cpu:.1f} CPU s, {wall:.1f} s wall-clock time, "
        f"peak memory {after.ru_maxrss / 1e6:.2f} GB"
    )


if __name__ == "__main__":
    main()
