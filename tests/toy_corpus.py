"""A corpus whose features spell its text, as stage 1 leaves it, and a config of a few thousand
parameters.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from asrtool.data import tokenizers
from asrtool.data.features import ArkWriter, CmvnStats
from asrtool.data.kaldi import datadir
from asrtool.types import Utterance

LETTERS = "abcd"
CONFIG = """
data:
  fbank: {num_mel_bins: 8}
  batch: {seconds: 4}
  workers: 0
model:
  type: hybrid
  encoder: {type: conformer, num_layers: 1, dim: 16, num_heads: 2, ffn_dim: 16, kernel: 3}
losses:
  ctc: {type: ctc, weight: 1.0}
optim: {lr: 1e-3}
trainer: {epochs: 2, average: 1, best: valid/cer}
"""


def write_set(folder: Path, count: int, seed: int) -> None:
    """Each letter is 12 frames in which one mel bin is loud."""
    rng = np.random.default_rng(seed)
    stats, rows = CmvnStats(8), []
    folder.mkdir(parents=True)
    with ArkWriter(folder / "feats.ark") as writer:
        for number in range(count):
            text = "".join(rng.choice(list(LETTERS), rng.integers(1, 4)))
            frames = rng.normal(size=(12 * len(text), 8)).astype(np.float32)
            for place, letter in enumerate(text):
                frames[12 * place : 12 * place + 9, 2 * LETTERS.index(letter)] += 9
            stats.add(frames)
            row = Utterance(
                id=f"u{number:03}",
                audio="none.wav",
                duration=len(frames) / 100,
                text=text,
                speaker=f"u{number:03}",
                features=writer.write(f"u{number:03}", frames),
                num_frames=len(frames),
            )
            rows.append(row)
    datadir.write(folder, rows)
    stats.cmvn().save(folder / "cmvn.json")


def write_corpus(root: Path) -> None:
    """Sets `train` and `valid`, `vocab`, and `config.yaml`."""
    write_set(root / "train", 24, seed=1)
    write_set(root / "valid", 6, seed=2)
    (root / "vocab").mkdir()
    tokenizers.train([LETTERS], "char", 0, root / "vocab")
    (root / "config.yaml").write_text(CONFIG)


def arguments(root: Path, exp: Path, *options: str, config: str = "config.yaml") -> list[str]:
    """Of `asrtool train`."""
    paths = {
        "config": root / config,
        "train": root / "train",
        "valid": root / "valid",
        "vocab": root / "vocab",
        "exp": exp,
    }
    return [part for name, path in paths.items() for part in (f"--{name}", str(path))] + list(
        options
    )
