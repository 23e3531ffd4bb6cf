"""The cost of a training step of several configs, relative to the first: forward, losses, backward.

    PYTHONPATH=. python tools/benchmarks/config_step.py egs/fsdd/conf/train_conformer.yaml \\
        egs/fsdd/conf/ebranchformer/train_ebranchformer.yaml --seconds 2.5 --utterances 24

CPU seconds of the process on one thread, of random features; the steps are interleaved, and the
medians of their times are compared. An optimizer's step is not included.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from asrtool.experiment import TrainConfig, load_phases
from asrtool.losses import LOSSES
from asrtool.model_folder import build_model
from asrtool.trainer.objective import Objective
from asrtool.types import Batch, Padded

TOKENS_PER_SECOND = 3.0


def batch(config: TrainConfig, seconds: float, utterances: int, vocabulary: int) -> Batch:
    frames = round(100 * seconds)
    generator = torch.Generator().manual_seed(0)
    size = (utterances, frames, config.data.fbank.num_mel_bins)
    tokens = (utterances, max(1, round(TOKENS_PER_SECOND * seconds)))
    return Batch(
        ids=tuple(map(str, range(utterances))),
        inputs=Padded(torch.randn(size, generator=generator), torch.full((utterances,), frames)),
        targets=Padded(
            torch.randint(2, vocabulary - 1, tokens, generator=generator),
            torch.full((utterances,), tokens[1]),
        ),
    )


def step(path: Path, seconds: float, utterances: int, vocabulary: int) -> Callable[[], float]:
    """Runs a step of the last phase of a config -> CPU seconds."""
    *_, config = load_phases(path).values()
    torch.manual_seed(0)
    model = build_model(config, vocabulary).train()
    losses = {name: LOSSES.build(one, eos=vocabulary - 1) for name, one in config.losses.items()}
    objective = Objective(losses, {name: one.weight for name, one in config.losses.items()})
    inputs = batch(config, seconds, utterances, vocabulary)

    def run() -> float:
        random.seed(0)  # of dynamic chunks
        model.zero_grad(set_to_none=True)
        start = time.process_time()
        objective(model(inputs), inputs).total.backward()
        return time.process_time() - start

    return run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=10.0, help="of an utterance")
    parser.add_argument("--utterances", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    size = (options.seconds, options.utterances, options.vocabulary)
    steps = [step(path, *size) for path in options.configs]
    # the first round warms up
    rounds = [[run() for run in steps] for _ in range(options.rounds + 1)][1:]
    medians = [statistics.median(times) for times in zip(*rounds, strict=True)]
    for path, median in zip(options.configs, medians, strict=True):
        print(f"{path}: {median:.3f} CPU s, {median / medians[0]:.2f} times the first")


if __name__ == "__main__":
    main()
