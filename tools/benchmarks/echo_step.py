"""The cost of Echo-MSA: a training step of a Conformer with and without it.

    PYTHONPATH=. python tools/benchmarks/echo_step.py         # 10 s and 60 s of audio, all modes
    PYTHONPATH=. python tools/benchmarks/echo_step.py --seconds 60 --dim 512

CPU seconds on one thread. A step is forward and backward of the encoder, without the optimizer. The
layers are those of the recipes (dim 256, 4 heads, feed-forward 2048), but fewer, so the stem has a
larger share of the step than in an encoder of 12 layers. The cost relative to the layers alone is
therefore printed, too. Runs are interleaved; a time is the minimum over rounds.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable

import torch
from torch import nn

from asrtool.encoders import ENCODERS, ConformerConfig, EchoConfig
from asrtool.types import Padded

MODES = {
    "adaptive 64": EchoConfig(windows=(64,)),
    "single 16": EchoConfig(mode="single", windows=(16,)),
    "single 64": EchoConfig(mode="single", windows=(64,)),
    "single 256": EchoConfig(mode="single", windows=(256,)),
    "heads 4 16 64 256": EchoConfig(mode="heads", windows=(4, 16, 64, 256)),
    "single 64, shared": EchoConfig(mode="single", windows=(64,), projections="shared"),
}


def encoder(dim: int, layers: int, attention: EchoConfig | None) -> nn.Module:
    torch.manual_seed(0)
    config = ConformerConfig(num_layers=layers, dim=dim, num_heads=dim // 64, kernel=31)
    config = dataclasses.replace(config, attention=attention)
    return ENCODERS.build(config, input_dim=80, vocab_size=100, frame_shift=0.01).train()


def step(model: nn.Module, inputs: Padded) -> Callable[[], None]:
    def run() -> None:
        model.zero_grad(set_to_none=True)
        model(inputs).frames.data.square().mean().backward()

    return run


def fastest(rounds: int, steps: list[Callable[[], None]]) -> list[float]:
    """Minimum of the CPU seconds of each step over interleaved rounds, without the first round."""
    best = [float("inf")] * len(steps)
    for turn in range(rounds + 1):
        for index, run in enumerate(steps):
            start = time.process_time()
            run()
            if turn:
                best[index] = min(best[index], time.process_time() - start)
    return best


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--seconds", type=int, nargs="*", default=[10, 60], help="lengths of audio"
    )
    options.add_argument(
        "--modes", nargs="*", default=list(MODES), choices=list(MODES), metavar="MODE"
    )
    options.add_argument("--dim", type=int, default=256)
    options.add_argument("--layers", type=int, default=2)
    options.add_argument("--rounds", type=int, default=4)
    args = options.parse_args()
    torch.set_num_threads(1)
    for seconds in args.seconds:
        inputs = Padded.stack([torch.randn(100 * seconds, 80)])
        attentions = (None, *(MODES[name] for name in args.modes))
        models = [encoder(args.dim, args.layers, attention) for attention in attentions]
        stem = encoder(args.dim, 1, None)
        steps = [step(model, inputs) for model in (*models, stem)]
        plain, *times, one_layer = fastest(args.rounds, steps)
        layers = plain - (one_layer - (plain - one_layer) / max(1, args.layers - 1))
        print(
            f"{seconds} s of audio, dim {args.dim}, {args.layers} layers: {plain:.3f} s a step "
            "without Echo-MSA"
        )
        for name, spent in zip(args.modes, times, strict=True):
            print(
                f"  {name:18} {spent:.3f} s, {spent / plain - 1:+.1%} of the step, "
                f"{(spent - plain) / layers:+.1%} of its layers",
                flush=True,
            )


if __name__ == "__main__":
    main()
