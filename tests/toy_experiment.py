"""A trained experiment in seconds: letters and spaces are tones, which a model of a few thousand
parameters reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import soundfile

from asrtool.bin import extract_features, make_vocab, train
from asrtool.data.kaldi import datadir
from asrtool.types import Utterance

RATE = 8000
TONES = {" ": 200, "a": 450, "b": 850, "c": 1400, "d": 2200, "e": 3200}
LETTER, GAP = 0.12, 0.04  # seconds of a tone, and of the silence behind it
NOISE = 0.002  # standard deviation of what is heard everywhere
CONFIG = """
data:
  fbank: {num_mel_bins: 20, rate: 8000}
  batch: {seconds: 20}
  workers: 0
model:
  type: hybrid
  encoder: {type: conformer, num_layers: 1, dim: 32, num_heads: 2, ffn_dim: 64, kernel: 7,
    dropout: 0.0,
            downsamplers: {0: {type: conv2d, factor: 4, channels: 8}}}
losses:
  ctc: {type: ctc, weight: 1.0}
optim: {lr: 5e-3, schedule: {type: one_cycle}}
trainer: {epochs: 30, average: 1, best: valid/cer, average_by: last}
"""
DECODE = "searcher: {type: ctc_greedy}\naverage: 1\nbatch_seconds: 20\n"


def sound(
    text: str,
    rng: np.random.Generator | None = None,
    rate: int = RATE,
    pause: float = 0.0,
    pitch: float = 1.0,
) -> np.ndarray:
    """(T,) float32: the tones of a text, with a little noise, between up to 0.2 s of silence;
    `pause`: at most so many seconds of silence more there, and on both sides of a space; `pitch`:
    factor of the tones' frequencies."""
    rng = rng or np.random.default_rng(0)
    times = np.arange(round(LETTER * rate)) / rate

    def silence(least: float, most: float) -> np.ndarray:
        return np.zeros(round(rng.uniform(least, most) * rate))

    parts = [silence(0, 0.2 + pause)]
    for letter in text:
        around = [silence(GAP / 2, GAP / 2 + (pause if letter == " " else 0)) for _ in range(2)]
        parts += [around[0], 0.3 * np.sin(2 * np.pi * pitch * TONES[letter] * times), around[1]]
    samples = np.concatenate([*parts, silence(0, 0.2 + pause)])
    return (samples + rng.normal(0, NOISE, len(samples))).astype(np.float32)


def quiet(seconds: float) -> np.ndarray:
    """(T,) float32: the noise without tones. The model has never heard digital silence."""
    size = round(seconds * RATE)
    return np.random.default_rng(0).normal(0, NOISE, size).astype(np.float32)


def text(rng: np.random.Generator, words: int) -> str:
    return " ".join("".join(rng.choice(list("abcde"), rng.integers(1, 5))) for _ in range(words))


def write_set(
    folder: Path, count: int, seed: int, accents: Mapping[str, float] = MappingProxyType({})
) -> None:
    """accents: name -> pitch; utterances take turns."""
    rng = np.random.default_rng(seed)
    (folder / "audio").mkdir(parents=True)
    rows = []
    for number in range(count):
        said = text(rng, int(rng.integers(1, 6)))
        accent = list(accents)[number % len(accents)] if accents else ""
        samples = sound(said, rng, pause=0.6, pitch=accents.get(accent, 1.0))
        path = folder / "audio" / f"u{number:03}.wav"
        soundfile.write(path, samples, RATE)
        labels = {"accent": accent} if accent else {}
        rows.append(
            Utterance(
                id=path.stem,
                audio=str(path),
                duration=len(samples) / RATE,
                text=said,
                speaker=path.stem,
                labels=labels,
            )
        )
    datadir.write(folder, rows)


def make(
    root: Path, config: str = CONFIG, accents: Mapping[str, float] = MappingProxyType({})
) -> Path:
    """Data, features, vocabulary and the experiment `root`/exp, made by the commands of the stages;
    gives `root`.
    """
    (root / "train.yaml").write_text(config)
    (root / "decode.yaml").write_text(DECODE)
    for name, count, seed in (("train", 80, 1), ("dev", 12, 2), ("test", 12, 3)):
        write_set(root / "data" / name, count, seed, accents)
        folders = ["--data", str(root / "data" / name), "--out", str(root / "dump" / name)]
        training = ["--training"] if name == "train" else []
        extract_features.main(
            ["--config", str(root / "train.yaml"), "--nj", "1", *folders, *training]
        )
    vocab = str(root / "vocab")
    make_vocab.main(
        ["--text", str(root / "data" / "train" / "text"), "--unit", "char", "--out", vocab]
    )
    train.main(
        [
            "--config",
            str(root / "train.yaml"),
            "--train",
            str(root / "dump" / "train"),
            "--vocab",
            vocab,
        ]
        + ["--valid", str(root / "dump" / "dev"), "--exp", str(root / "exp")]
    )
    return root
