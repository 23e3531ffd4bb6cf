"""How much of asrtool one act visits: files and functions, of one optimizer step, of loading a
model, of recognising one file.

    PYTHONPATH=. python tools/visited.py exp/train_conformer --audio a.wav \
        --train dump/fbank80/train --vocab data/vocab_char

A reader who follows the act has to open so many places. The first step, which compiles and
allocates, is left out; `recognize` is counted on its second call, too.
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


def visited(act: Callable[[], object]) -> list[tuple[str, str]]:
    """File and function of everything in asrtool that `act` calls, comprehensions left out."""
    calls: set[tuple[str, str]] = set()

    def note(frame: object, event: str, argument: object) -> None:
        code = frame.f_code
        ours = code.co_filename.startswith(str(PACKAGE))
        if event == "call" and ours and not code.co_name.startswith("<"):
            name = Path(code.co_filename).relative_to(PACKAGE).as_posix()
            calls.add((name, code.co_qualname))

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return sorted(calls)


def step(exp: Path, train: Path, vocab: Path) -> Callable[[], object]:
    """One optimizer step of the experiment's first phase."""
    phase = next(iter(Experiment.open(exp).phases.values()))
    with tempfile.TemporaryDirectory() as folder:
        for name, place in (("vocab", vocab), ("cmvn.json", train / "cmvn.json")):
            (Path(folder) / name).symlink_to(place.resolve())
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
    options.add_argument("exp", type=Path, help="a trained experiment")
    options.add_argument("--audio", required=True, help="a file to recognise")
    options.add_argument("--train", type=Path, help="its training set; without it, no step")
    options.add_argument("--vocab", type=Path, help="its vocabulary folder")
    options.add_argument("--list", action="store_true", help="name them")
    args = options.parse_args(argv)
    acts = {"asrtool.load": lambda: asrtool.load(args.exp)}
    recognizer = asrtool.load(args.exp)
    recognizer.recognize(args.audio)
    acts["recognize"] = lambda: recognizer.recognize(args.audio)
    if args.train is not None:
        acts["optimizer step"] = step(args.exp, args.train, args.vocab)
    for name, act in acts.items():
        calls = visited(act)
        print(f"{name}: {len({file for file, _ in calls})} files, {len(calls)} functions")
        if args.list:
            print("\n".join(f"  {file} {function}" for file, function in calls))


if __name__ == "__main__":
    main()
