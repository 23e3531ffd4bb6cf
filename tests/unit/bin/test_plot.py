"""Curves from log.jsonl, and the picture of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from asrtool.bin import plot
from asrtool.errors import UserError
from asrtool.report import sources
from asrtool.trainer import curves
from tests.toy_training import toy_trainer

SECONDS = {"data": 0.1, "forward": 0.2, "backward": 0.5, "wait": 0.1, "update": 0.1, "other": 0.0}


def step(number: int, phase: str = "train", loss: float = 1.0, **more: object) -> dict:
    values = {
        "rate": 1e-3,
        "norm": 2.0,
        "audio_seconds_per_second": 50.0,
        "data_wait": 0.1,
        "seconds": SECONDS,
    }
    return {
        "event": "step",
        "phase": phase,
        "epoch": 1,
        "step": number,
        "loss": loss,
        "ctc": loss,
        **values,
        **more,
    }


def valid(number: int, phase: str = "train", wer: float = 0.5) -> dict:
    return {
        "event": "valid",
        "phase": phase,
        "epoch": 1,
        "step": number,
        "valid/loss": 2.0,
        "valid/wer": wer,
    }


def write(exp: Path, *records: dict, torn: str = "") -> Path:
    (exp / "log.jsonl").write_text(
        "".join(json.dumps({"time": 1.0, **record}) + "\n" for record in records) + torn
    )
    return exp


def test_curves_are_losses_rates_and_shares_of_the_time(tmp_path):
    found = curves.read(write(tmp_path, step(1, loss=3.0), step(2, loss=2.0), valid(2, wer=0.25)))
    assert set(found.losses) == {"loss", "ctc", "valid/loss"}
    assert (found.losses["ctc"].steps, found.losses["ctc"].values) == ([1, 2], [3.0, 2.0])
    assert found.rates["valid/wer"].values == [0.25]
    assert {part: curve.values[0] for part, curve in found.time.items()} == pytest.approx(SECONDS)


def test_phases_follow_each_other_on_the_axis(tmp_path):
    found = curves.read(
        write(tmp_path, step(5, "first"), valid(10, "first"), step(5, "second"), valid(6, "second"))
    )
    assert found.phases == {"first": 0, "second": 10}
    assert found.losses["loss"].steps == [5, 15]
    assert found.rates["valid/wer"].steps == [10, 16]


def test_what_was_logged_again_after_a_kill_counts_once(tmp_path):
    found = curves.read(
        write(
            tmp_path, step(1), step(2, loss=9.0), step(2, loss=4.0), step(3), torn='{"event": "st'
        )
    )
    assert (found.losses["loss"].steps, found.losses["loss"].values) == ([1, 2, 3], [1.0, 4.0, 1.0])


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x1c"])
def test_a_record_is_whole_whatever_its_texts_hold(tmp_path, mark):
    record = step(1, skipped=f"no file a{mark}b.wav")
    (tmp_path / "log.jsonl").write_text(
        json.dumps(record, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    assert curves.read(tmp_path).losses["loss"].steps == [1]
    assert sources.log_records(tmp_path / "log.jsonl") == [record]


@pytest.mark.parametrize("name", ["curves.png", "curves.svg"])
def test_a_training_is_drawn(tmp_path, name):
    pytest.importorskip("matplotlib")
    toy_trainer(tmp_path, log_every=1).run()
    plot.main([str(tmp_path), *([] if name.endswith("png") else ["--out", str(tmp_path / name)])])
    content = (tmp_path / name).read_bytes()
    assert content.startswith(b"\x89PNG") if name.endswith("png") else b"valid/wer" in content
    assert not list(tmp_path.glob("*.tmp*"))


def test_a_missing_log_an_empty_one_and_a_strange_ending_are_one_sentence(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(UserError, match="has no log.jsonl; training .stage 3. writes it"):
        plot.main([str(tmp_path)])
    with pytest.raises(UserError, match="no record of a step or a validation yet"):
        plot.main([str(write(tmp_path))])
    with pytest.raises(UserError, match="--out .*curves.mp3"):
        plot.main([str(write(tmp_path, step(1))), "--out", str(tmp_path / "curves.mp3")])
