"""Time the training steps of a recipe as `asrtool train` runs them: loader, model, losses, update,
in CPU seconds.

    PYTHONPATH=. python tools/benchmarks/recipe_step.py egs/librispeech/conf/train_mini.yaml \
        --train egs/librispeech/dump/mini/fbank80/train \
        --vocab egs/librispeech/data/mini/vocab_char \
        --contender "now" --contender "float32: trainer.precision=float32" \
        --contender "before@../older-checkout"

Stages 0 to 2 of the recipe make the folders. A contender is NAME[@CHECKOUT][: KEY=VALUE ...]:
another checkout of asrtool, other settings of the config, or, in capitals, variables of the
environment. Each is a process of its own: some settings are read when a process starts; they take
turns of some steps each. The first rounds warm up: what a training does once (compile kernels) is
left out, what it does again and again is not. A ratio is the median over rounds of CPU seconds per
second of audio, divided by those of the first contender.
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
    """Read numbers of steps, a line each, and answer each with a line of JSON."""
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
    """The stepper of the config's first phase, its groups of batches, and its precision; as the
    training stage makes them, in the folder `exp`. Everything of asrtool is imported here, from the
    checkout that PYTHONPATH names.
    """
    import torch

    from asrtool import experiment
    from asrtool.data import tokenizers
    from asrtool.model_folder import build_model
    from asrtool.trainer.step import DTYPES, Stepper

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
    if precision not in DTYPES:  # auto, which older checkouts do not know
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
    """CPU seconds, frames and padded frames of `count` updates after number `step`; loading is not
    in them.
    """
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
    """Batches and objective of a phase, of this checkout or of an older one."""
    paths = {"train": train, "valid": train, "vocab": vocab}
    try:
        from asrtool import training
    except ImportError:  # checkouts whose command assembles the training
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
    """A process that trains when it is told to."""

    def __init__(self, text: str, args: argparse.Namespace) -> None:
        found = CONTENDER.fullmatch(text)
        self.name = found["name"].strip()
        checkout = Path(found["checkout"].strip()) if found["checkout"] else ROOT
        words = (found["settings"] or "").split()
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
    """What this machine multiplies bfloat16 with, as Linux names it."""
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
    parser.add_argument("--contender", action="append")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=10, help="of a turn")
    parser.add_argument("--warm", type=int, default=3, help="rounds that are not counted")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        work(args.config, args.train, args.vocab, args.work)
        return
    field = [Contender(text, args) for text in args.contender or ["asrtool"]]
    for _ in range(args.warm + args.rounds):
        for contender in field:
            contender.turn(args.steps)
    print(f"instructions for bf16: {bf16_instructions()}")
    first = field[0].cost(args.warm)
    width = max(len(contender.name) for contender in field)
    for contender in field:
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
