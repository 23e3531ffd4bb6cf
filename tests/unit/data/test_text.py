"""Sentences for language models: where they come from, how they are batched."""

from __future__ import annotations

from pathlib import Path

import pytest

from asrtool.data import tokenizers
from asrtool.data.config import BatchConfig, DataConfig
from asrtool.data.loader import EvalLoader
from asrtool.data.text import Sentences, TextDataset, TextLoader
from asrtool.errors import UserError

LINES = ["ab cab", "a", "", "  bb  a ", "c" * 30]


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "text").write_text("u1 abc\nu2\nu3 cc\n")
    (tmp_path / "more.txt").write_text("\n".join(LINES))
    return [tmp_path / "set", tmp_path / "more.txt"]


@pytest.fixture
def tokenizer(tmp_path: Path) -> tokenizers.Tokenizer:
    (tmp_path / "vocab").mkdir()
    return tokenizers.train(["ab c"], "char", 0, tmp_path / "vocab")


def config(tokens: float = 20) -> DataConfig:
    return DataConfig(input="text", batch=BatchConfig(tokens=tokens), workers=0)


def test_sentences_of_folders_and_files_without_empty_ones(sources):
    found = Sentences(sources)
    texts = {one.id: one.text for one in found}
    assert texts == {
        "u1": "abc",
        "u3": "cc",
        "more.txt:1": "ab cab",
        "more.txt:2": "a",
        "more.txt:4": "bb a",
        "more.txt:5": "c" * 30,
    }
    assert len(found) == 6 and [one.id for one in found[1:3]] == ["u3", "more.txt:1"]


def test_batches_hold_so_many_tokens_with_padding(sources, tokenizer):
    dataset = TextDataset(Sentences(sources), tokenizer, config(), longest=20)
    assert len(dataset) == 5  # one is longer than a batch
    seen = []
    loader = TextLoader(dataset)
    for step in loader.steps():
        for batch in step.batches:
            seen += batch.texts
            assert len(batch) * (int(batch.targets.lengths.max()) + 1) <= 20
            for text, row in zip(batch.texts, batch.targets.unpad(), strict=True):
                assert tokenizer.decode(row.tolist()) == text
        if step.last:
            break
    assert sorted(seen) == sorted(["abc", "cc", "ab cab", "a", "bb a"])
    assert "5 sentences" in loader.describe()


def test_validation_leaves_nothing_out(sources, tokenizer):
    texts = [
        text
        for batch in EvalLoader(TextDataset(Sentences(sources), tokenizer, config()))
        for text in batch.texts
    ]
    assert len(texts) == 6


def test_what_is_left_out_is_named(sources, tokenizer, caplog, monkeypatch):
    monkeypatch.setattr("asrtool.log.logger.propagate", True)
    TextDataset(Sentences(sources), tokenizer, config(), longest=20)
    assert "1 sentences of more than 20 tokens are left out: more.txt:5" in caplog.text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "empty.txt", "is empty"),
        (lambda folder: folder / "a.txt.gz", "decompress it first"),
        (lambda folder: folder, "has no text to train on"),
    ],
)
def test_what_holds_no_text_is_refused(tmp_path, make, message):
    (tmp_path / "empty.txt").touch()
    (tmp_path / "a.txt.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=message):
        Sentences([make(tmp_path)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either seconds"),
        ({"seconds": 1, "tokens": 1}, "give either seconds"),
        (
            {"tokens": 1, "max_seconds_per_device": 1},
            "max_seconds_per_device cannot be used with tokens",
        ),
        ({"tokens": 0}, "must be greater than 0"),
    ],
)
def test_batches_have_one_unit(settings, message):
    with pytest.raises(ValueError, match=message):
        BatchConfig(**settings)


def test_text_is_batched_by_tokens_and_audio_by_seconds():
    with pytest.raises(ValueError, match="use batch.tokens with data.input: text"):
        DataConfig(input="text", batch=BatchConfig(seconds=10))
    with pytest.raises(ValueError, match="use batch.tokens with data.input: text"):
        DataConfig(batch=BatchConfig(tokens=10))
