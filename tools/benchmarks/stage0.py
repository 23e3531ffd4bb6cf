"""CPU time and peak memory of stage 0 on a generated corpus of the size and layout of AISHELL-2.

    PYTHONPATH=. python tools/benchmarks/stage0.py <folder>     # 1,000,000 utterances, 4 GB of disk
    PYTHONPATH=. python tools/benchmarks/stage0.py <folder> --utterances 20000

The wav files are sparse: their headers declare 1 to 10 s, and the disk stores one block of each.
Each command runs in its own process. The tree stays in the folder, and the next run uses it again.
"""

from __future__ import annotations

import argparse
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

from asrtool.system import atomic

RATE = 16000
SPEAKERS = 1991  # as AISHELL-2 has
HAN = [chr(code) for code in range(0x4E00, 0x4E00 + 5000)]
ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("folder", type=Path, help="folder of the corpus and its data directories")
    options.add_argument("--utterances", type=int, default=1_000_000, help="of the training set")
    args = options.parse_args()
    corpus, out = args.folder / f"corpus-{args.utterances}", args.folder / "data"
    if not corpus.exists():
        make(corpus, args.utterances)
    subprocess.run(["rm", "-rf", out], check=True)
    prepare = [
        str(ROOT / "egs/aishell2/local/prepare_data.py"),
        "--corpus",
        str(corpus),
        "--out",
        str(out),
    ]
    sets = [str(out / name) for name in ("train", "dev", "test_ios", "test_android", "test_mic")]
    print(f"{args.utterances:,} utterances for training")
    print(f"{'':32}{'CPU s':>8}{'wall s':>8}{'MiB':>8}")
    measure("prepare_data.py", prepare)
    measure("prepare_data.py again", prepare)
    measure("check_data", ["-m", "asrtool.bin.check_data", *sets])


def make(corpus: Path, utterances: int) -> None:
    """Write the tree to a temporary folder and rename it."""
    start = time.monotonic()
    with atomic.replacing_folder(corpus) as target:
        held_out = target / "AISHELL-DEV-TEST-SET"
        write(target / "AISHELL-2" / "iOS" / "data", "C", SPEAKERS, utterances)
        write(held_out / "iOS" / "dev", "D", 5, 2500)
        for channel in ("iOS", "Android", "Mic"):
            write(held_out / channel / "test", "T", 10, 5000)
    print(f"made {corpus} in {time.monotonic() - start:.0f} s")


def write(target: Path, letter: str, speakers: int, utterances: int) -> None:
    """Write one set; `letter` begins the ids of its speakers."""
    rng = random.Random(str(target.name))
    target.mkdir(parents=True)
    with (
        open(target / "wav.scp", "w", encoding="utf-8") as wavs,
        open(target / "trans.txt", "w", encoding="utf-8") as texts,
    ):
        for number in range(utterances):
            speaker = f"{letter}{number * speakers // utterances:04d}"
            key, folder = f"I{speaker}W{number:07d}", target / "wav" / speaker
            if number == 0 or speaker != f"{letter}{(number - 1) * speakers // utterances:04d}":
                folder.mkdir(parents=True)
            write_sparse_wav(f"{folder}/{key}.wav", rng.randint(RATE, 10 * RATE))
            wavs.write(f"{key}\twav/{speaker}/{key}.wav\n")
            texts.write(f"{key}\t{''.join(rng.choices(HAN, k=rng.randint(4, 20)))}\n")


def write_sparse_wav(path: str, samples: int) -> None:
    """A wav file of digital silence, of which the disk stores only the header."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(
        handle,
        struct.pack(
            "<4sI8sIHHIIHH4sI",
            b"RIFF",
            36 + 2 * samples,
            b"WAVEfmt ",
            16,
            1,
            1,
            RATE,
            2 * RATE,
            2,
            16,
            b"data",
            2 * samples,
        ),
    )
    os.ftruncate(handle, 44 + 2 * samples)
    os.close(handle)


def measure(name: str, arguments: list[str]) -> None:
    """Run a command in its own process; print its time and peak memory."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    start = time.monotonic()
    done = subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(done.pid, 0)
    if status:
        raise SystemExit(f"{name} failed with status {status}")
    wall = time.monotonic() - start
    print(
        f"{name:32}{usage.ru_utime + usage.ru_stime:8.1f}{wall:8.1f}{usage.ru_maxrss / 1024:8.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
