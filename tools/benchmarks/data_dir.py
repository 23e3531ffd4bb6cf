"""CPU time and peak memory of the data-directory commands on a large set.

    PYTHONPATH=. python tools/benchmarks/data_dir.py --number 1000000 [--work <folder>]

Writes a data directory with this number of utterances, 500 per speaker, and empty audio files
(these commands do not open them). Then it runs one command after the other: check_data; check_data
with one wrong line in utt2spk; check_data --fix for that; a subset of a tenth; a split into 8;
describe.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PER_SPEAKER = 500  # utterances


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--number", type=int, default=1_000_000, help="utterances")
    options.add_argument("--work", type=Path, help="folder to work in (default: a temporary one)")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(dir=args.work) as folder:
        root = Path(folder)
        make(root, args.number)
        broken = root / "broken"
        shutil.copytree(root / "set", broken)
        lines = (broken / "utt2spk").read_text().splitlines()
        lines[len(lines) // 2] = "ZZZ nobody"
        (broken / "utt2spk").write_text("\n".join(lines) + "\n")
        print(f"{args.number} utterances{'':18}CPU s   wall s     MB", flush=True)
        measure("check_data", "check_data", root / "set")
        measure("check_data, one wrong line", "check_data", broken, status=1)
        measure("check_data --fix", "check_data", "--fix", broken)
        measure("data subset", "data", "subset", root / "set", args.number // 10, root / "subset")
        measure("data split 8", "data", "split", root / "set", 8)
        measure("describe, with a second set", "describe", root / "set", root / "subset")


def make(root: Path, number: int) -> None:
    (root / "set").mkdir()
    names = ("wav.scp", "text", "utt2spk", "utt2dur", "spk2utt")
    files = {name: open(root / "set" / name, "w", encoding="utf-8") for name in names}  # noqa: SIM115
    for first in range(0, number, PER_SPEAKER):
        speaker = f"C{first // PER_SPEAKER:05}"
        folder = root / "wav" / speaker
        folder.mkdir(parents=True)
        ids = [f"I{speaker}W{n:04}" for n in range(min(PER_SPEAKER, number - first))]
        for n, key in enumerate(ids):
            os.close(os.open(folder / f"{key}.wav", os.O_CREAT | os.O_WRONLY))
            files["wav.scp"].write(f"{key} {folder}/{key}.wav\n")
            files["text"].write(f"{key} 今天天气怎么样{chr(0x4E00 + n)}\n")
            files["utt2spk"].write(f"{key} {speaker}\n")
            files["utt2dur"].write(f"{key} {1 + n % 9}.5\n")
        files["spk2utt"].write(f"{speaker} {' '.join(ids)}\n")
    for file in files.values():
        file.close()


def measure(name: str, *command: object, status: int = 0) -> None:
    """Run a command in its own process; print its time and peak memory."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    arguments = [sys.executable, "-m", f"asrtool.bin.{command[0]}", *map(str, command[1:])]
    script = (
        "import resource, subprocess, sys; done = subprocess.run(sys.argv[1:], "
        "stdout=subprocess.DEVNULL); "
        "print(done.returncode, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    code, peak = map(int, done.stdout.split())
    if code != status:
        sys.exit(f"{name}: exit status {code}, expected {status}\n{done.stderr}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{name:36}{cpu:8.1f} {time.perf_counter() - started:8.1f} {peak / 1024:6.0f}", flush=True
    )


if __name__ == "__main__":
    main()
