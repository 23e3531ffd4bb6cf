"""A model that knows accents on a corpus without: decoded as it is, and trained on with its
vocabulary.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from asrtool.bin import decode, extract_features, train
from tests import toy_experiment


@pytest.fixture(scope="module")
def corpus(toy_stream: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Features of sets that name no accents."""
    root = tmp_path_factory.mktemp("unlabelled")
    for number, (name, count) in enumerate((("train", 24), ("test", 6))):
        toy_experiment.write_set(root / "data" / name, count, seed=50 + number)
        options = ["--data", str(root / "data" / name), "--out", str(root / "dump" / name)]
        options += ["--config", str(toy_stream / "train.yaml"), "--nj", "1"]
        extract_features.main([*options, *(["--training"] if name == "train" else [])])
    return root


def decoded(exp: Path, toy: Path, corpus: Path, out: Path) -> list[dict]:
    options = ["--config", str(toy / "decode_rescoring.yaml"), "--out", str(out)]
    decode.main(["--exp", str(exp), "--data", str(corpus / "dump" / "test"), *options])
    return [json.loads(line) for line in (out / "hyps.jsonl").read_text().splitlines()]


def test_it_is_decoded_as_it_is_and_says_accents(toy_stream, corpus, tmp_path):
    rows = decoded(toy_stream / "exp", toy_stream, corpus, tmp_path / "out")
    assert len(rows) == 6 and all(set(row["classes"]["accent"]) == {"high", "low"} for row in rows)


def test_training_goes_on_and_the_accent_head_stays(toy_stream, corpus, tmp_path, capsys):
    exp = tmp_path / "exp"
    options = ["--config", str(toy_stream / "train.yaml"), "--exp", str(exp)]
    options += ["--train", str(corpus / "dump/train"), "--valid", str(corpus / "dump/test")]
    options += ["--vocab", str(toy_stream / "exp/vocab"), "--init", str(toy_stream / "exp")]
    changes = "trainer.epochs=1 optim.lr=1e-4 losses.accent.class_weights=inverse_frequency"
    train.main([*options, "--set", changes])
    assert "starts from the weights" in capsys.readouterr().err
    before, after = (
        load_file(folder / "train" / "average-1.safetensors")
        for folder in (toy_stream / "exp", exp)
    )
    changes = {name: (before[name] - after[name]).abs().max() for name in before}
    assert max(changes.values()) > 1e-4
    for name in before:
        if "accent_head" in name:  # but for weight decay
            torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=1e-6)
    rows = decoded(exp, toy_stream, corpus, tmp_path / "out")
    assert all(set(row["classes"]["accent"]) == {"high", "low"} for row in rows)
    assert (exp / "vocab" / "labels.json").exists()
    shutil.rmtree(exp)
