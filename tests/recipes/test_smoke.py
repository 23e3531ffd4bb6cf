"""Stages 0 to 5 of a recipe on synthesised speech: the model learns; finished stages are idle."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.recipes.conftest import LEARN, run_in

DECODED = "egs/librispeech/exp/mini_tiny/train_mini/decode_mini/train"


def total(folder: Path) -> dict:
    return json.loads((folder / "score.json").read_text())["total"]


def test_the_recipe_learns_its_training_set_by_heart(tiny):
    score = total(tiny / DECODED)
    assert score["reference"] > 200
    assert score["rate"] < 0.05


def test_the_same_command_again_does_nothing_but_score(tiny_alone):
    hypotheses = (tiny_alone / DECODED / "hyps.jsonl").stat().st_mtime_ns
    done = run_in(tiny_alone, LEARN)
    assert (tiny_alone / DECODED / "hyps.jsonl").stat().st_mtime_ns == hypotheses
    said = done.stdout + done.stderr
    assert "is finished; its weights are" in said
    assert len(re.findall("is up to date", said)) >= 8  # data and features of four sets at least


def test_every_decoded_token_has_a_time_within_its_utterance(tiny):
    for line in (tiny / DECODED / "hyps.jsonl").read_text().splitlines():
        hypothesis = json.loads(line)
        assert (
            len(hypothesis["times"]) == len(hypothesis["tokens"]) == len(hypothesis["confidences"])
        )
        assert hypothesis["times"] == sorted(hypothesis["times"])
        assert all(0 <= time <= hypothesis["seconds"] for time in hypothesis["times"])


def test_results_do_not_depend_on_the_number_of_ranks(tiny_alone):
    run_in(
        tiny_alone,
        "cd egs/librispeech && . ../../utils/path.sh && "
        "python -m asrtool.bin.torchrun --standalone --nproc-per-node 3 -m asrtool.bin.decode "
        "--exp exp/mini_tiny/train_mini --config conf/decode_mini.yaml "
        "--data dump/mini_tiny/fbank80/train --out ranks3",
    )
    three = (tiny_alone / "egs/librispeech/ranks3/text").read_text()
    assert three == (tiny_alone / DECODED / "text").read_text()  # which one process wrote


@pytest.mark.slow
@pytest.mark.parametrize("how", ["extend", "replace"])
def test_a_recipe_fine_tunes_a_model_with_its_vocabulary_or_another(tiny_alone, how):
    model = "exp/mini_tiny/train_mini"
    done = run_in(
        tiny_alone,
        "./run.sh librispeech --mini true --mini-size tiny --ranks 2 --stage 2 --stop-stage 4 "
        f"--init-from {model} --init-vocab {how} --tag {how} --train-config {model}/config.yaml "
        "--test-sets train --train-args 'trainer.steps=2 trainer.epochs=null'",
    )
    said = done.stdout + done.stderr
    assert f"{model}/train/average-3.safetensors with a fresh optimizer" in said
    new = {"extend": "vocab_train_mini", "replace": "vocab_char"}[how]
    assert f"--vocab data/mini_tiny/{new}" in said and f"--set init.vocab={how}" in said
    assert (tiny_alone / f"egs/librispeech/exp/mini_tiny/{how}/decode_mini/train/text").exists()


@pytest.mark.slow
def test_the_miniature_reaches_its_error_rates(trained):
    decoded = trained / "egs/librispeech/exp/mini/train_mini/decode_mini"
    assert total(decoded / "test_clean")["rate"] <= 0.10
    assert total(decoded / "test_other")["rate"] <= 0.25
