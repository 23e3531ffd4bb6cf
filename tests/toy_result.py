"""A made-up experiment as stages 3 to 5 leave it: texts with errors, some sound, a log, what a
model gives away.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import soundfile

from asrtool.bin import score
from asrtool.data.kaldi import datadir
from asrtool.types import Utterance

TEXT = """
the a of and to in that it was he she they we harbour lantern meadow river stone window winter
summer
quietly slowly never always under over between house garden letter morning evening
"""
WORDS = TEXT.split()


def make(
    root: Path,
    utterances: int = 12,
    *,
    speakers: int = 3,
    sounding: int = 4,
    metric: str = "wer",
    seed: int = 0,
    texts: tuple[dict[str, str], dict[str, str]] | None = None,
    taps: bool = True,
    score_it: bool = True,
) -> Path:
    """`root/exp/toy/decode_toy/test`, beside `root/data/test`; the first `sounding` utterances have
    audio files.
    """
    rng = random.Random(seed)
    data, folder = root / "data" / "test", root / "exp" / "toy" / "decode_toy" / "test"
    folder.mkdir(parents=True)
    references, hypotheses = texts or _texts(rng, utterances, speakers)
    rows = []
    for number, (name, text) in enumerate(references.items()):
        path, seconds = root / "audio" / f"{name}.wav", 1.5
        if number < sounding:
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, _sound(seconds, number), 16000)
        speaker = name.rpartition("-")[0] or name
        rows.append(
            Utterance(
                id=name,
                audio=str(path.relative_to(root)),
                duration=seconds,
                text=text,
                speaker=speaker,
                labels={"accent": ("north", "south")[number % 2]},
            )
        )
    datadir.write(data, rows)
    (folder / "text").write_text("".join(f"{name} {text}\n" for name, text in hypotheses.items()))
    lines = [_line(rng, name, text, taps) for name, text in hypotheses.items()]
    (folder / "hyps.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    )
    _experiment(root / "exp" / "toy")
    if score_it:
        score.main([str(data), str(folder), "--metric", metric, "--group-by", "accent"])
    return folder


def _texts(
    rng: random.Random, utterances: int, speakers: int
) -> tuple[dict[str, str], dict[str, str]]:
    references, hypotheses = {}, {}
    for number in range(utterances):
        name = f"s{number % speakers:03d}-{number:05d}"
        words = rng.choices(WORDS, k=rng.randint(4, 30))
        heard = [
            rng.choice(WORDS) if rng.random() < 0.06 else word
            for word in words
            if rng.random() > 0.03
        ]
        references[name] = " ".join(words)
        hypotheses[name] = " ".join(
            word for w in heard for word in ((w, "um") if rng.random() < 0.02 else (w,))
        )
    return dict(sorted(references.items())), dict(sorted(hypotheses.items()))


def _sound(seconds: float, number: int) -> np.ndarray:
    time = np.arange(round(seconds * 16000)) / 16000
    tone = (
        np.sin(2 * np.pi * (300 + 100 * number) * time * (1 + 0.4 * time))
        * np.sin(2 * np.pi * 3 * time) ** 2
    )
    return 0.3 * tone + 0.001 * np.random.default_rng(number).standard_normal(len(time))


def _line(rng: random.Random, name: str, text: str, taps: bool) -> dict:
    tokens = text.split()
    times = sorted(round(rng.uniform(0, 1.45), 2) for _ in tokens)
    line = {
        "id": name,
        "text": text,
        "score": -1.0,
        "tokens": tokens,
        "times": times,
        "confidences": [round(rng.uniform(0.3, 1), 3) for _ in tokens],
        "seconds": 1.5,
        "elapsed": 0.03,
    }
    if taps:
        line["key_frames"] = times
        line["curves"] = {
            "gate": {
                "step": 0.04,
                "values": [round(0.5 + 0.5 * math.sin(n / 3), 3) for n in range(36)],
            }
        }
        rows = [
            [round(math.exp(-(((n * 0.04 - time) / 0.1) ** 2)), 3) for n in range(36)]
            for time in times
        ]
        if rows:
            line["maps"] = {"attention": {"step": 0.04, "rows": tokens, "values": rows}}
        line["classes"] = {"accent": {"north": 0.7, "south": 0.3}}
    return line


def _experiment(exp: Path) -> None:
    (exp / "config.yaml").write_text("phases:\n  train:\n    seed: 0\n")
    (exp / "git.txt").write_text("2026-01-01 00:00:00 0123456789abcdef\n")
    (exp / "command.txt").write_text("2026-01-01 00:00:00 train --exp exp/toy\n")
    records = []
    for step in range(20, 401, 20):
        loss = 100 * math.exp(-step / 100)
        records.append(
            {
                "event": "step",
                "phase": "train",
                "epoch": 1,
                "step": step,
                "rate": 1e-3,
                "loss": loss,
                "ctc": loss,
                "norm": 5.0,
                "audio_seconds_per_second": 100.0,
                "data_wait": 0.0,
            }
        )
        if step % 100 == 0:
            records.append(
                {
                    "event": "valid",
                    "phase": "train",
                    "epoch": 1,
                    "step": step,
                    "valid/loss": 1.2 * loss,
                    "valid/wer": loss / 100,
                }
            )
    (exp / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
