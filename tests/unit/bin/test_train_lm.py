"""A language model from text to fusion: trained by the stage's command, and decoded with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import asrtool
from asrtool.bin import decode, pack, train
from asrtool.data import tokenizers
from asrtool.errors import UserError
from asrtool.system import stamp
from tests import toy_experiment as toys

CONFIG = """
data: {input: text, batch: {tokens: 300}, workers: 0}
model: {type: language_model, num_layers: 1, dim: 16, num_heads: 2, ffn_dim: 32, dropout: 0.0}
losses:
  lm: {type: cross_entropy, weight: 1.0, input: lm, smoothing: 0.0}
optim: {lr: 1e-2}
trainer: {epochs: 6, average: 1, best: valid/perplexity}
"""
LM = "searcher: {type: attention_rescoring, weights: {ctc: 1.0, lm: 0.3}}\naverage: 1\n"


@pytest.fixture(scope="module")
def lm(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lm")
    (folder / "lm.yaml").write_text(CONFIG)
    (folder / "more.txt").write_text("abc de\nbad cab\n" * 20)
    (folder / "decode.yaml").write_text(LM)
    data = ["--train", str(toy / "data" / "train"), "--valid", str(toy / "data" / "dev")]
    where = [
        "--vocab",
        str(toy / "vocab"),
        "--exp",
        str(folder / "exp"),
        "--text",
        str(folder / "more.txt"),
    ]
    train.main(["--config", str(folder / "lm.yaml"), *data, *where])
    return folder


def test_perplexity_is_measured_and_falls(lm):
    records = [json.loads(line) for line in (lm / "exp" / "log.jsonl").read_text().splitlines()]
    found = [record["valid/perplexity"] for record in records if record["event"] == "valid"]
    assert len(found) == 6
    assert 1 < found[-1] < 0.9 * found[0]
    # tokens that occur: 5 letters, the space and the end; guessing would give about 7
    assert found[-1] < 8
    assert any("tokens_per_second" in record for record in records if record["event"] == "step")


def test_the_n_best_is_rated_again(toy, lm, tmp_path):
    decode.main(
        [
            "--exp",
            str(toy / "exp"),
            "--config",
            str(lm / "decode.yaml"),
            "--data",
            str(toy / "dump" / "test"),
        ]
        + ["--out", str(tmp_path / "out"), "--lm", str(lm / "exp"), "--set", "nbest=3"]
    )
    for row in (tmp_path / "out" / "hyps.jsonl").read_text().splitlines():
        line = json.loads(row)
        assert {"ctc", "lm"} == set(line["parts"])
        assert line["score"] == pytest.approx(
            line["parts"]["ctc"] + 0.3 * line["parts"]["lm"], abs=1e-3
        )


def test_it_is_packed_with_the_recogniser(toy, lm, tmp_path):
    options = [
        "--config",
        str(lm / "decode.yaml"),
        "--lm",
        str(lm / "exp"),
        "--out",
        str(tmp_path / "model"),
    ]
    pack.main([str(toy / "exp"), *options])
    found = asrtool.load(tmp_path / "model").recognize(toys.sound("abc de"))
    assert found.text == "abc de" and "lm" in found.nbest[0].parts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda toy, lm: {"path": lm / "exp"},
            "holds a language model, which cannot recognise speech",
        ),
        (
            lambda toy, lm: {"path": toy / "exp", "lm": toy / "exp"},
            "holds no language model: .*model.type: hybrid",
        ),
    ],
)
def test_the_wrong_folder_is_refused(toy, lm, change, message):
    with pytest.raises(UserError, match=message):
        asrtool.load(**change(toy, lm))


def test_a_language_model_of_another_vocabulary_is_refused(toy, lm, tmp_path):
    copy = Path(shutil.copytree(lm / "exp", tmp_path / "exp"))
    shutil.rmtree(copy / "vocab")
    (copy / "vocab").mkdir()
    tokenizers.train(["xyz"], "char", 0, copy / "vocab")
    (copy / stamp.NAME).unlink()  # as if it had been trained with it
    with pytest.raises(
        UserError,
        match="vocabulary of the language .* differs from the recogniser's",
    ):
        asrtool.load(toy / "exp", lm=copy)


def test_text_without_a_language_model_is_refused(toy, lm, tmp_path):
    data = ["--train", str(toy / "dump" / "train"), "--valid", str(toy / "dump" / "dev")]
    where = [
        "--vocab",
        str(toy / "vocab"),
        "--exp",
        str(tmp_path / "exp"),
        "--text",
        str(lm / "more.txt"),
    ]
    with pytest.raises(ValueError, match="--text is for language models"):
        train.main(["--config", str(toy / "train.yaml"), *data, *where])
