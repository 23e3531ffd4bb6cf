"""A long training on a set with faulty utterances: it must finish, name them, and not leak memory.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tools/benchmarks/nasty_run.py [--steps 10000]

The set has sixty utterances of tones, and among them NaN audio, a truncated file, a missing file,
an utterance of 300 seconds, an empty text, a text far longer than its frames, and digital silence
(which is valid). Features are computed in every epoch. Prints the message about each, and the
memory of the trainer and its loader processes in each quarter of the training.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import tempfile
import threading
import time
from pathlib import Path
from statistics import mean

import numpy as np
import soundfile
import torch

from asrtool.bin import train
from asrtool.data import tokenizers
from asrtool.data.config import DataConfig
from asrtool.data.fbank import Fbank
from asrtool.data.features import CmvnStats
from asrtool.data.kaldi import datadir
from asrtool.log import logger
from asrtool.types import Utterance

RATE = 16000
CONFIG = """
data: {features: online, batch: {seconds: 12}, workers: 2, augment: {spec_augment: {}}}
model:
  type: hybrid
  encoder: {type: conformer, num_layers: 1, dim: 16, num_heads: 2, ffn_dim: 32, kernel: 3}
losses: {ctc: {type: ctc, weight: 1.0}}
optim: {lr: 1e-3}
trainer: {steps: 10000, average: 2, validate_every: 1000, log_every: 100}
"""
NASTY = {
    "nan": "NaN audio",
    "cut": "a truncated file",
    "gone": "a missing file",
    "long": "300 seconds",
    "empty": "an empty text",
    "crowded": "a text longer than its frames",
}


def tone(text: str) -> np.ndarray:
    """(T,) float32: 0.1 seconds for each letter, which has its own pitch."""
    times = np.arange(RATE // 10) / RATE
    parts = [
        0.1 * np.sin(2 * np.pi * (300 + 200 * "abcdefgh".index(letter)) * times) for letter in text
    ]
    return np.concatenate(parts or [np.zeros(RATE)]).astype(np.float32)


def make(folder: Path) -> None:
    """Write the sets `train` and `valid` with cmvn.json, a vocabulary, and the config."""
    rng, rows = np.random.default_rng(0), {}
    for number in range(60):
        text = "".join(rng.choice(list("abcdefgh"), rng.integers(5, 30)))
        rows[f"u{number:02}"] = (text, tone(text))
    text, sound = "abcdefgh", tone("abcdefgh")
    rows["nan"] = (text, np.where(np.arange(len(sound)) == 999, np.nan, sound))
    rows["cut"], rows["gone"] = (text, sound), (text, sound)
    rows["long"] = (text, np.tile(sound, 1 + 300 * RATE // len(sound)))
    rows["empty"], rows["silent"] = ("", 0.01 * tone("hg")), (text, np.zeros(RATE))
    rows["crowded"] = ("ab" * 40, tone("abc"))
    (folder / "audio").mkdir()
    stats, fbank = CmvnStats(80), Fbank(DataConfig.__dataclass_fields__["fbank"].default_factory())
    utterances = []
    for name, (words, samples) in rows.items():
        file = folder / "audio" / f"{name}.wav"
        soundfile.write(file, samples, RATE, subtype="FLOAT")
        if name.startswith("u"):
            stats.add(fbank(torch.from_numpy(samples)).numpy())
        utterances.append(
            Utterance(
                id=name, audio=str(file), duration=len(samples) / RATE, text=words, speaker=name
            )
        )
    (folder / "audio" / "gone.wav").unlink()
    cut = folder / "audio" / "cut.wav"
    cut.write_bytes(cut.read_bytes()[:30])
    for name, members in (("train", utterances), ("valid", utterances[:5])):
        (folder / name).mkdir()
        datadir.write(folder / name, members)
        stats.cmvn().save(folder / name / "cmvn.json")
    (folder / "vocab").mkdir()
    tokenizers.train(["abcdefgh"], "char", 0, folder / "vocab")
    (folder / "config.yaml").write_text(CONFIG)


def memory_of(process: int) -> float:
    """Megabytes of a process and its descendants: anonymous pages, shared ones counted once."""
    pids, total = [process], 0.0
    for pid in pids:
        try:
            for file in Path(f"/proc/{pid}/task").glob("*/children"):
                pids += map(int, file.read_text().split())
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += (
                sum(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:")) / 1000
            )
        except OSError:
            continue
    return total


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--steps", type=int, default=10_000)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)
        memory: list[float] = []
        done = threading.Event()

        def sample() -> None:
            while not done.wait(1.0):
                memory.append(memory_of(os.getpid()))

        threading.Thread(target=sample, daemon=True).start()
        messages = logging.StreamHandler(io.StringIO())
        start = time.process_time()
        paths = [f"--{key}={folder / key}" for key in ("train", "valid", "vocab", "exp")]
        set_up = train.set_up
        train.set_up = lambda: (set_up(), logger.addHandler(messages))
        train.main(
            [f"--config={folder / 'config.yaml'}", *paths, f"--set=trainer.steps={args.steps}"]
        )
        done.set()
        log = [json.loads(line) for line in (folder / "exp" / "log.jsonl").read_text().splitlines()]
        end = next(record for record in log if record["event"] == "finished")
        print(
            f"finished after {end['step']} steps, {end['bad']} bad, "
            f"{time.process_time() - start:.0f} CPU seconds"
        )
        text = messages.stream.getvalue()
        for key, description in NASTY.items():
            lines = [line for line in text.splitlines() if f" {key}" in line or f": {key}" in line]
            print(
                f"{description}: {len(lines)} lines, the first: "
                f"{lines[0].replace(name, '') if lines else 'NOT NAMED'}"
            )
        quarter = len(memory) // 4
        print(
            "memory in MB, by quarter:",
            *(f"{mean(memory[i * quarter : (i + 1) * quarter]):.1f}" for i in range(4)),
        )
        losses = [record["valid/loss"] for record in log if record["event"] == "valid"]
        print(f"valid/loss {losses[0]:.2f} -> {losses[-1]:.2f}")


if __name__ == "__main__":
    main()
