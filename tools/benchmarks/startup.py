"""The start-up cost of commands: CPU seconds of whole processes, relative to `import torch`.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/startup.py \\
        egs/librispeech/exp/mini/train_mini speech.wav
    ... --data <data directory> --config <train_*.yaml>      also stage 1
    ... --decode <decode_*.yaml>                             also another search

User and system seconds, medians over rounds. Commands are interleaved, so that the load of the
machine affects them equally. Each command first runs once to compile and cache its kernels; the
time of this run is printed as `first`. The audio file should be short.
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
    """Name -> command line; the first one is the reference."""
    asrtool = [sys.executable, "-m", "asrtool"]
    lines = {
        TORCH: [sys.executable, "-c", TORCH],
        "recognize --help": [*asrtool, "recognize", "--help"],
        "recognize": [*asrtool, "recognize", str(args.model), str(args.audio)],
    }
    if args.decode is not None:
        lines[f"recognize, {args.decode.stem}"] = [
            *lines["recognize"],
            "--config",
            str(args.decode),
        ]
    if args.data is not None:
        stage = ["extract_features", "--config", str(args.config), "--data", str(args.data)]
        lines["extract_features"] = [*asrtool, *stage, "--out", str(folder / "features"), "--force"]
    return lines


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
    options.add_argument("--decode", type=Path, help="decode_*.yaml of another search")
    options.add_argument("--data", type=Path, help="data directory for stage 1")
    options.add_argument("--config", type=Path, help="train_*.yaml for stage 1")
    options.add_argument("--rounds", type=int, default=7)
    args = options.parse_args(argv)
    if (args.data is None) != (args.config is None):
        options.error("stage 1 needs --data and --config")
    with tempfile.TemporaryDirectory() as temporary:
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(Path(temporary) / "compiled")}
        measured = commands(args, Path(temporary))
        first = {name: cpu_seconds(command, environment) for name, command in measured.items()}
        seconds: dict[str, list[float]] = {name: [] for name in measured}
        for _ in range(args.rounds):
            for name, command in measured.items():
                seconds[name].append(cpu_seconds(command, environment))
    for name, times in seconds.items():
        ratio = median(times) / median(seconds[TORCH])
        print(
            f"{name:32} {median(times):6.2f} CPU s   {ratio:5.2f} of import torch   first "
            f"{first[name]:6.2f}"
        )


if __name__ == "__main__":
    main()
