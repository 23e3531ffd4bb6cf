"""The speed of a recipe's training steps: model, losses and update, as `asrtool train` runs them.

    PYTHONPATH=. python tools/benchmarks/recipe_step.py egs/librispeech/conf/train_mini.yaml \\
        --train egs/librispeech/dump/mini/fbank80/train \\
        --vocab egs/librispeech/data/mini/vocab_char \\
        --contender "now" --contender "float32: trainer.precision=float32" \\
        --contender "before@../older-checkout"

Stages 0 to 2 of the recipe make the folders. A contender is NAME[@CHECKOUT][: KEY=VALUE ...]:
another checkout of asrtool, overrides of the config, or, in capitals, environment variables. Each
contender has its own process, because some settings are read when a process starts; they take turns
of a few steps each. Loading is not measured. The first rounds are warm-up: the work that a training
does once, such as compiling kernels, does not count. A ratio is the median over rounds of the CPU
seconds per frame, divided by those of the first contender.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
CONTENDER = re.compile(r"(?P<name>[^@:]+)(@(?P<checkout>[^:]+))?(:(?P<settings>.*))?", re.DOTALL)


# -- a contender's process -------------------------------------------------


def work(config: str, train: str, vocab: str, settings: str) -> None:
    """Run the steps of a contender: for each number on stdin, print a line of JSON."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        stepper, groups, precision = assemble(config, Path(train), vocab, settings, Path(folder))
        capability = torch.backends.cpu.get_cpu_capability()
        print("ready", precision, torch.__version__, capability, flush=True)
        step = 0
        for line in sys.stdin:
            count = int(line)
            print(json.dumps(timed(stepper, groups, step, count)), flush=True)
            step += count


def assemble(
    config: str, train: Path, vocab: str, settings: str, exp: Path
) -> tuple[Any, Iterator[Any], str]:
    """The stepper of the config's first phase, its groups of batches, and its precision.

    They are made in the folder `exp`, as in a training. asrtool is imported here, from the checkout
    in PYTHONPATH.
    """
    import torch

    from asrtool import experiment
    from asrtool.data import tokenizers
    from asrtool.model_folder import build_model
    from asrtool.trainer.step import Stepper

    phases = experiment.load_phases(
        Path(config), experiment.split_overrides([settings] if settings else [])
    )
    phase = next(iter(phases.values()))
    (exp / "vocab").symlink_to(Path(vocab).resolve())
    (exp / "cmvn.json").symlink_to(train.resolve() / "cmvn.json")
    tokenizer = tokenizers.load(exp / "vocab")
    batches, objective = prepared(phase, exp, train, Path(vocab), tokenizer)
    torch.manual_seed(phase.seed)
    model = build_model(phase, tokenizer.size)
    precision = phase.trainer.precision
    if precision == "auto":  # older checkouts have neither it nor the module
        from asrtool.trainer.precision import choose

        precision = choose(precision, torch.device("cpu"))
    stepper = Stepper(
        phase.optim,
        model,
        objective,
        planned=10000,
        precision=precision,
        device=torch.device("cpu"),
        seed=phase.seed,
        shared=phase.trainer.parallel,
    )
    return stepper, iter(batches.steps()), precision


def timed(stepper: Any, groups: Iterator[Any], step: int, count: int) -> dict[str, float]:
    """CPU seconds, frames and padded frames of the `count` updates after step `step`."""
    cpu = frames = padded = 0.0
    for number in range(step + 1, step + count + 1):
        group = next(groups)
        start = time.process_time()
        result = stepper.update(group, number)
        cpu += time.process_time() - start
        frames += result.frames
        padded += sum(
            batch.inputs.data.shape[0] * batch.inputs.data.shape[1] for batch in group.batches
        )
    return {"cpu": cpu, "frames": frames, "padded": padded}


def prepared(
    phase: object, exp: Path, train: Path, vocab: Path, tokenizer: object
) -> tuple[object, object]:
    """Batches and objective of a phase, in this checkout or an older one."""
    paths = {"train": train, "valid": train, "vocab": vocab}
    try:
        from asrtool import training
    except ImportError:  # older checkouts assemble the training in the command
        from asrtool.bin import train as training

        sources = argparse.Namespace(**paths, exp=exp, text=[])
        sets = training.read_sets(sources, phase)
        batches, _ = training.loaders(phase, sources, sets, tokenizer)
    else:
        sources = training.Sources(**paths)
        sets = training.read_sets(sources, phase)
        batches, _ = training.loaders(exp, phase, sources, sets, tokenizer)
    return batches, training.make_objective(phase, tokenizer, exp / "vocab")


# -- the comparison --------------------------------------------------------


class Contender:
    """A process that runs training steps on request."""

    def __init__(self, text: str, args: argparse.Namespace) -> None:
        match = CONTENDER.fullmatch(text)
        self.name = match["name"].strip()
        checkout = Path(match["checkout"].strip()) if match["checkout"] else ROOT
        words = (match["settings"] or "").split()
        environment = dict(word.split("=", 1) for word in words if word.partition("=")[0].isupper())
        settings = " ".join(word for word in words if not word.partition("=")[0].isupper())
        self.process = subprocess.Popen(
            [
                sys.executable,
                __file__,
                str(args.config),
                "--train",
                str(args.train),
                "--vocab",
                str(args.vocab),
                "--work",
                settings,
            ],
            env={
                **os.environ,
                "PYTHONPATH": str(checkout.resolve()),
                "OMP_NUM_THREADS": "1",
                **environment,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        line = " "
        while line and not line.startswith("ready"):
            line = self.process.stdout.readline()
        self.machine = " ".join(line.split()[1:])
        self.rounds: list[dict] = []

    def turn(self, steps: int) -> None:
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name}: the process ended with status {self.process.wait()}")
        self.rounds.append(json.loads(line))

    def cost(self, warm: int) -> list[float]:
        return [turn["cpu"] / turn["frames"] for turn in self.rounds[warm:]]


def bf16_instructions() -> str:
    """The CPU's instructions for bfloat16, as Linux names them."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return "unknown"
    return ", ".join(sorted({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))) or "none"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("--train", type=Path, required=True, help="training set of stage 1")
    parser.add_argument("--vocab", type=Path, required=True, help="vocabulary of stage 2")
    parser.add_argument(
        "--contender", action="append", help="NAME[@CHECKOUT][: KEY=VALUE ...]; can be repeated"
    )
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10, help="steps per turn")
    parser.add_argument("--warm", type=int, default=3, help="warm-up rounds, which do not count")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        work(args.config, args.train, args.vocab, args.work)
        return
    contenders = [Contender(text, args) for text in args.contender or ["asrtool"]]
    for _ in range(args.warm + args.rounds):
        for contender in contenders:
            contender.turn(args.steps)
    print(f"instructions for bf16: {bf16_instructions()}")
    first = contenders[0].cost(args.warm)
    width = max(len(contender.name) for contender in contenders)
    for contender in contenders:
        cost = contender.cost(args.warm)
        counted = contender.rounds[args.warm :]
        step = median(turn["cpu"] for turn in counted) / args.steps
        padding = 1 - sum(turn["frames"] for turn in counted) / sum(
            turn["padded"] for turn in counted
        )
        ratio = median(own / other for own, other in zip(cost, first, strict=True))
        figures = f"{step:.3f} CPU s a step  padding {padding:.1%}  {ratio:.2f} times the first"
        print(f"{contender.name:{width}}  {figures}  ({contender.machine})")
        contender.process.stdin.close()


if __name__ == "__main__":
    main()
