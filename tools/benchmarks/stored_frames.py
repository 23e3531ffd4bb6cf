"""The speed-up of training steps by stored frames of a frozen front end.

    PYTHONPATH=. python tools/benchmarks/stored_frames.py --weights <folder of whisper-base>
    PYTHONPATH=. python tools/benchmarks/stored_frames.py --type hubert --weights <folder> --layer 9

CPU seconds on one thread. Compares steps on stored frames with steps that run the front end. A step
is reading files or archives, padding, forward, CTC, backward and update. The audio is noise of 3 to
15 seconds. The trained network matters for the ratio as much as the front end; by default it is a
Conformer of 4 layers with a stem that reduces the rate by 4 (to 80 ms). Steps of both kinds take
turns on the same utterances; the ratio is that of their sums. The one-time cost of stage 1 is
printed, too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import nn

from asrtool import experiment
from asrtool.bin import extract_features
from asrtool.data import tokenizers
from asrtool.data.kaldi import datadir
from asrtool.data.loader import Dataset, StepBatches, StepLoader
from asrtool.experiment import TrainConfig
from asrtool.model_folder import build_model
from asrtool.trainer.objective import Objective
from asrtool.training import make_objective
from asrtool.types import Utterance

RATE = 16000
TEXT = "abcdefghijklmnopqrstuvwxyz "
CONFIG = """
data:
  input: waveform
  features: {features}
  batch: {{seconds: {seconds}}}
  workers: 0
model:
  type: hybrid
  encoder:
    type: conformer
    num_layers: {layers}
    dim: {dim}
    num_heads: 4
    ffn_dim: {ffn_dim}
    downsamplers: {{0: {{type: conv1d_mlp, rate: {rate}, hidden_dim: 256}}}}
    frontend: {{type: {type}, weights: "{weights}", layer: {layer}, tuning: frozen}}
losses: {{ctc: {{type: ctc, weight: 1.0}}}}
optim: {{lr: 1e-3}}
trainer: {{epochs: 1, best: valid/cer}}
"""


def write_corpus(root: Path, count: int) -> None:
    """Write the data directory `root`/set, of noise, and `root`/vocab."""
    rng, rows = np.random.default_rng(0), []
    for number in range(count):
        samples = 0.1 * rng.standard_normal(int(rng.uniform(3, 15) * RATE))
        path = root / f"u{number:03}.flac"
        soundfile.write(path, samples.clip(-1, 1), RATE)
        seconds = len(samples) / RATE
        text = "".join(rng.choice(list(TEXT), int(8 * seconds))).strip()
        rows.append(
            Utterance(id=path.stem, audio=str(path), duration=seconds, text=text, speaker=path.stem)
        )
    datadir.write(root / "set", rows)
    (root / "vocab").mkdir()
    tokenizers.train([TEXT], "char", 0, root / "vocab")


class Trainer:
    """Training steps on one kind of data."""

    def __init__(self, phase: TrainConfig, data: Path, vocab: Path) -> None:
        torch.manual_seed(0)
        tokenizer = tokenizers.load(vocab)
        dataset = Dataset(datadir.read(data), tokenizer, phase.data, training=True)
        self.steps: Iterator[StepBatches] = StepLoader(dataset, rank=0, world=1).steps()
        self.model: nn.Module = build_model(phase, tokenizer.size).train()
        self.objective: Objective = make_objective(phase, tokenizer, vocab)
        trained = [value for value in self.model.parameters() if value.requires_grad]
        self.trained = sum(map(torch.numel, trained))
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)

    def step(self) -> float:
        """Run a step; returns its CPU seconds."""
        start = time.process_time()
        group = next(self.steps)
        self.optimizer.zero_grad()
        for batch in group.batches:
            self.objective(self.model(batch), batch).total.div(group.count).backward()
        self.optimizer.step()
        return time.process_time() - start


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--weights", required=True, help="folder or hub name of the front end")
    options.add_argument("--type", default="whisper", help="type of the front end")
    options.add_argument("--layer", default="null", help="layer of the front end; null: the last")
    options.add_argument("--layers", type=int, default=4, help="layers of the Conformer")
    options.add_argument("--dim", type=int, default=144, help="width of the Conformer")
    options.add_argument("--rate", type=int, default=4, help="downsampling factor of the stem")
    options.add_argument("--seconds", type=float, default=60, help="seconds of a batch")
    options.add_argument("--utterances", type=int, default=40)
    options.add_argument("--rounds", type=int, default=6)
    args = options.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        compare(args, Path(folder))


def compare(args: argparse.Namespace, root: Path) -> None:
    write_corpus(root, args.utterances)
    trainers = {}
    for kind in ("stored_frames", "stored"):
        settings = {**vars(args), "ffn_dim": 4 * args.dim, "features": kind}
        (root / "train.yaml").write_text(CONFIG.format(**settings))
        paths = ["--config", str(root / "train.yaml"), "--data", str(root / "set")]
        start = time.process_time()
        extract_features.main([*paths, "--out", str(root / kind)])
        extraction = time.process_time() - start
        if kind == "stored_frames":
            size = sum(file.stat().st_size for file in (root / kind).glob("*.ark"))
            hours = sum(row.duration for row in datadir.read(root / "set")) / 3600
            print(f"stage 1: {extraction:.1f} s, {size / hours / 1e9:.2f} GB per hour of audio")
        phase = experiment.load_phases(root / "train.yaml")["train"]
        trainers[kind] = Trainer(phase, root / kind, root / "vocab")
    spent = dict.fromkeys(trainers, 0.0)
    for turn in range(args.rounds + 1):
        for kind, trainer in trainers.items():
            seconds = trainer.step()
            spent[kind] += seconds if turn else 0  # the first step compiles kernels
    print(f"trained: {trainers['stored'].trained / 1e6:.2f} M parameters")
    for kind, title in (("stored", "with the front end"), ("stored_frames", "stored frames")):
        mean = spent[kind] / args.rounds
        print(f"{title}: {mean:.3f} s per step of up to {args.seconds:g} s of audio")
    print(f"ratio: {spent['stored'] / spent['stored_frames']:.1f}")


if __name__ == "__main__":
    main()
