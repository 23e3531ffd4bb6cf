"""Time relative positions against rotary ones in the forward pass of a Conformer, in CPU seconds.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/relative_attention.py
    ... --gaps                   relative positions of key frames, which lie on no grid

Layers of width 256 with 4 heads behind a stem of factor 4, one utterance, without gradient. Both
take turns; a ratio is the median over rounds of relative / rotary.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import torch

from asrtool.downsamplers import Conv2dConfig
from asrtool.encoders import ENCODERS, ConformerConfig
from asrtool.types import Padded

BINS = 80


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--seconds", nargs="+", type=float, default=[30, 60, 120])
    options.add_argument("--layers", type=int, default=3)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--gaps", action="store_true", help="as if positions lay on no grid")
    args = options.parse_args()
    torch.set_num_threads(1)
    encoders = {name: build(name, args.layers) for name in ("rotary", "relative")}
    if args.gaps:
        encoders["relative"].relative = False  # no table of distances
    for seconds in args.seconds:
        frames = round(100 * seconds)
        inputs = Padded(torch.randn(1, frames, BINS), torch.tensor([frames]))
        for encoder in encoders.values():  # warm up
            cost(encoder, inputs)
        rounds = [
            [cost(encoder, inputs) for encoder in encoders.values()] for _ in range(args.rounds)
        ]
        rotary = median(one[0] for one in rounds)
        ratio = median(one[1] / one[0] for one in rounds)
        print(f"{seconds:g} s: rotary {rotary:.3f} CPU s, relative {ratio:.2f} times")


def build(positions: str, layers: int) -> torch.nn.Module:
    config = ConformerConfig(
        num_layers=layers,
        positions=positions,
        downsamplers={0: Conv2dConfig(factor=4)},
    )
    return ENCODERS.build(config, input_dim=BINS, vocab_size=10, frame_shift=0.01).eval()


@torch.no_grad()
def cost(encoder: torch.nn.Module, inputs: Padded) -> float:
    start = time.process_time()
    encoder(inputs)
    return time.process_time() - start


if __name__ == "__main__":
    main()
