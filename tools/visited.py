"""Counts the files and functions of asrtool that an operation calls.

    PYTHONPATH=. python tools/visited.py exp/train_conformer --audio a.wav \\
        --train dump/fbank80/train --vocab data/vocab_char

The operations are loading a model, recognising a file, and an optimizer step. The counts show how
much code a reader has to follow. Optimizer steps and recognitions are counted at their second run,
since the first one also compiles and allocates.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import asrtool
from asrtool import training
from asrtool.data import tokenizers
from asrtool.model_folder import Experiment, build_model
from asrtool.trainer.precision import choose
from asrtool.trainer.step import Stepper

PACKAGE = Path(asrtool.__file__).parent


def visited(operation: Callable[[], object]) -> list[tuple[str, str]]:
    """File and function of all calls in asrtool, except comprehensions and lambdas."""
    calls: set[tuple[str, str]] = set()

    def record(frame: object, event: str, argument: object) -> None:
        code = frame.f_code
        in_package = code.co_filename.startswith(str(PACKAGE))
        if event == "call" and in_package and not code.co_name.startswith("<"):
            name = Path(code.co_filename).relative_to(PACKAGE).as_posix()
            calls.add((name, code.co_qualname))

    sys.setprofile(record)
    try:
        operation()
    finally:
        sys.setprofile(None)
    return sorted(calls)


def step(exp: Path, train: Path, vocab: Path) -> Callable[[], object]:
    """The second optimizer step of the experiment's first phase; the first one is run here."""
    phase = next(iter(Experiment.open(exp).phases.values()))
    with tempfile.TemporaryDirectory() as folder:
        for name, path in (("vocab", vocab), ("cmvn.json", train / "cmvn.json")):
            (Path(folder) / name).symlink_to(path.resolve())
        tokenizer = tokenizers.load(vocab)
        sources = training.Sources(train=train, valid=train, vocab=vocab)
        sets = training.read_sets(sources, phase)
        batches, _ = training.loaders(Path(folder), phase, sources, sets, tokenizer)
        stepper = Stepper(
            phase.optim,
            build_model(phase, tokenizer.size),
            training.make_objective(phase, tokenizer, vocab),
            planned=1000,
            precision=choose(phase.trainer.precision, torch.device("cpu")),
            device=torch.device("cpu"),
            seed=phase.seed,
        )
    groups = iter(batches.steps())
    first, second = next(groups), next(groups)
    stepper.update(first, 1)
    return lambda: stepper.update(second, 2)


def main(argv: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("exp", type=Path, help="trained experiment")
    options.add_argument("--audio", required=True, help="file to recognise")
    options.add_argument("--train", type=Path, help="its training set, for the optimizer step")
    options.add_argument("--vocab", type=Path, help="its vocabulary, for the optimizer step")
    options.add_argument("--list", action="store_true", help="also list the files and functions")
    args = options.parse_args(argv)
    operations = {"asrtool.load": lambda: asrtool.load(args.exp)}
    recognizer = asrtool.load(args.exp)
    recognizer.recognize(args.audio)
    operations["recognize"] = lambda: recognizer.recognize(args.audio)
    if args.train is not None:
        operations["optimizer step"] = step(args.exp, args.train, args.vocab)
    for name, operation in operations.items():
        calls = visited(operation)
        print(f"{name}: {len({file for file, _ in calls})} files, {len(calls)} functions")
        if args.list:
            print("\n".join(f"  {file} {function}" for file, function in calls))


if __name__ == "__main__":
    main()
