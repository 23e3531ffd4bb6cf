"""A model of a training config with random weights, as training leaves one: for measuring speed.

    PYTHONPATH=. python tools/benchmarks/random_model.py \\
        egs/kespeech/conf/u2pp/train_u2pp_conformer.yaml model --tokens 5000

It emits about five tokens a second, as speech has syllables.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from asrtool import experiment
from asrtool.data import tokenizers
from asrtool.data.features import Cmvn
from asrtool.experiment import load_phases
from asrtool.model_folder import CONFIG, WEIGHTS, build_model
from asrtool.trainer import checkpoint
from asrtool.types import Padded

SILENT = 0.8  # of the frames have no token


def write_random(args: argparse.Namespace) -> None:
    """A folder as training leaves it, of random weights."""
    name, phase = list(load_phases(args.config).items())[-1]
    torch.manual_seed(0)
    (args.out / "vocab").mkdir(parents=True)
    letters = "".join(chr(0x4E00 + number) for number in range(args.tokens - 3))
    tokenizers.train([letters], "char", 0, args.out / "vocab")
    bins = phase.data.fbank.num_mel_bins
    Cmvn(np.full(bins, 13.0), np.full(bins, 3.0)).save(args.out / "cmvn.json")  # about speech's
    model = build_model(phase, args.tokens).eval()
    with torch.inference_mode():  # every token gets the mean 0, and the blank wins most frames
        head = model.heads["ctc"]
        logits = head.logits(
            model.encode(Padded.stack([torch.randn(2000, model.encoder.input_dim)]))
        )
        head.bias -= logits.data.mean((0, 1))
        head.weight.mul_(5)
        head.bias.mul_(5)
        logits = head.logits(
            model.encode(Padded.stack([torch.randn(2000, model.encoder.input_dim)]))
        )
        best = logits.data[0, :, 1:].max(-1).values
        head.bias[0] += (best - logits.data[0, :, 0]).quantile(SILENT)
    tensors = checkpoint.model_tensors(model)
    save_file(
        {key: value.detach().contiguous() for key, value in tensors.items()}, args.out / WEIGHTS
    )
    (args.out / CONFIG).write_text(experiment.dump_phases({name: phase}), encoding="utf-8")
    count = sum(value.numel() for value in model.parameters()) / 1e6
    print(f"{args.out}: {count:.1f} M parameters, {args.tokens} tokens")


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("config", type=Path, help="training config")
    options.add_argument("out", type=Path)
    options.add_argument("--tokens", type=int, default=5000)
    write_random(options.parse_args())


if __name__ == "__main__":
    main()
