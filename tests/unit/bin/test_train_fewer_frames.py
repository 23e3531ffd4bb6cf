"""Unimodal aggregation and blank-regularized CTC, trained on tones."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from asrtool.bin import decode, train
from asrtool.recognizer import Recognizer
from asrtool.score import count_errors
from asrtool.types import Padded


def fit(toy: Path, exp: Path, *overrides: str) -> Path:
    train.main(
        ["--config", str(toy / "train.yaml"), "--train", str(toy / "dump" / "train")]
        + ["--valid", str(toy / "dump" / "dev"), "--vocab", str(toy / "vocab")]
        + ["--exp", str(exp), "--set", shlex.join(overrides)]
    )
    return exp


def references(toy: Path) -> dict[str, str]:
    lines = (toy / "dump" / "dev" / "text").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def decoded(toy: Path, exp: Path) -> list[dict]:
    out = exp / "decoded"
    decode.main(
        ["--exp", str(exp), "--config", str(toy / "decode.yaml")]
        + ["--data", str(toy / "dump" / "dev"), "--out", str(out)]
    )
    return [json.loads(line) for line in (out / "hyps.jsonl").read_text().splitlines()]


def error_rate(toy: Path, lines: list[dict]) -> float:
    texts = references(toy)
    counts = count_errors(
        [list(texts[line["id"]]) for line in lines], [list(line["text"]) for line in lines]
    )
    return counts.errors / counts.reference


def spoken_frames_per_token(toy: Path, exp: Path) -> float:
    """Frames that the CTC head does not read as blank, by tokens of the reference."""
    recognizer = Recognizer.load(exp)
    frames = 0
    for path in sorted((toy / "data" / "dev" / "audio").glob("*.wav")):
        encoded = recognizer.encode(Padded.stack([recognizer.prepare(path).inputs]))
        frames += int((recognizer.model.log_probs(encoded).data[0].argmax(-1) != 0).sum())
    return frames / sum(map(len, references(toy).values()))


def test_unimodal_aggregation_recognises_from_few_frames(toy, tmp_path):
    exp = fit(
        toy,
        tmp_path / "exp",
        "model.encoder.num_layers=2",
        "model.encoder.downsamplers.1={type: uma}",
        "trainer.epochs=20",
    )
    lines = decoded(toy, exp)
    assert error_rate(toy, lines) < 0.2
    # a tone lasts for four frames of 40 ms
    assert sum(line["frames"] for line in lines) < 0.6 * sum(
        line["seconds"] / 0.04 for line in lines
    )


def test_blank_regularized_ctc_leaves_more_frames_to_blank(toy, tmp_path):
    exp = fit(toy, tmp_path / "exp", "losses.ctc.repeat_penalty=3", "trainer.epochs=12")
    assert error_rate(toy, decoded(toy, exp)) < 0.1
    plain, own = (spoken_frames_per_token(toy, one) for one in (toy / "exp", exp))
    assert own < 1.05
    assert own < plain
