"""What commands cost before they work: CPU seconds of whole processes, beside those of `import
torch` alone.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/startup.py
        egs/librispeech/exp/mini/train_mini speech.wav
    ... --data <data directory> --config <train_*.yaml>      stage 1 too
    ... --decode <decode_*.yaml>                             another search than the model's own

User and system seconds, medians of the rounds, which are interleaved: a machine that is busy slows
all of them. Every command runs once before, so that what is compiled is there; those seconds are
printed as `first`. Give a short file.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

TORCH = "import torch"


def commands(args: argparse.Namespace, folder: Path) -> dict[str, list[str]]:
    """Name -> command line; the first one is what the others are divided by."""
    asrtool = [sys.executable, "-m", "asrtool"]
    found = {
        TORCH: [sys.executable, "-c", TORCH],
        "recognize --help": [*asrtool, "recognize", "--help"],
        "recognize": [*asrtool, "recognize", str(args.model), str(args.audio)],
    }
    if args.decode is not None:
        found[f"recognize, {args.decode.stem}"] = [
            *found["recognize"],
            "--config",
            str(args.decode),
        ]
    if args.data is not None:
        stage = ["extract_features", "--config", str(args.config), "--data", str(args.data)]
        found["extract_features"] = [*asrtool, *stage, "--out", str(folder / "features"), "--force"]
    return found


def cpu_seconds(command: list[str], environment: dict[str, str]) -> float:
    before = os.times()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    after = os.times()
    return (
        after.children_user + after.children_system - before.children_user - before.children_system
    )


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("model", type=Path, help="experiment or packed model")
    options.add_argument("audio", type=Path, help="file to recognise")
    options.add_argument("--decode", type=Path, help="decode_*.yaml of a further search")
    options.add_argument("--data", type=Path, help="data directory for stage 1")
    options.add_argument("--config", type=Path, help="train_*.yaml for stage 1")
    options.add_argument("--rounds", type=int, default=7)
    args = options.parse_args(argv)
    if (args.data is None) != (args.config is None):
        options.error("stage 1 needs --data and --config")
    with tempfile.TemporaryDirectory() as name:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(name) / "compiled")}
        todo = commands(args, Path(name))
        first = {what: cpu_seconds(command, environment) for what, command in todo.items()}
        seconds: dict[str, list[float]] = {what: [] for what in todo}
        for _ in range(args.rounds):
            for what, command in todo.items():
                seconds[what].append(cpu_seconds(command, environment))
    for what, taken in seconds.items():
        ratio = median(taken) / median(seconds[TORCH])
        print(
            f"{what:32} {median(taken):6.2f} CPU s   {ratio:5.2f} of import torch   first "
            f"{first[what]:6.2f}"
        )


if __name__ == "__main__":
    main()
