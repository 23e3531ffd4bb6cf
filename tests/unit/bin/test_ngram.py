"""asrtool ngram: files, vocabularies, what cannot be spelled."""

from __future__ import annotations

import gzip
import random

import pytest

from asrtool.bin import ngram
from asrtool.data import tokenizers
from asrtool.errors import UserError
from asrtool.searchers.ngram import ArpaModel


@pytest.fixture
def corpus(tmp_path):
    """Sentences in capitals and a vocabulary of small letters."""
    draw = random.Random(0)
    words = ["the", "cat", "sat", "on", "a", "mat", "it's", "dog"]
    lines = [" ".join(draw.choices(words, range(1, 9), k=draw.randint(1, 6))) for _ in range(80)]
    (tmp_path / "vocab").mkdir()
    tokenizers.train(lines, "char", 0, tmp_path / "vocab")
    text = "".join(f"{line.upper()}\n" for line in lines)
    (tmp_path / "text.gz").write_bytes(gzip.compress((text + "\nCAFÉ 7 CAT\n").encode()))
    kaldi = "".join(f"u{n} {line}\n" for n, line in enumerate(lines))
    (tmp_path / "text").write_text(kaldi + "u999\n", encoding="utf-8")
    return tmp_path


def run(corpus, *more: str) -> ArpaModel:
    out = corpus / "lm.arpa.gz"
    ngram.main(["--out", str(out), "--discount-fallback", "--order", "2", *more])
    return ArpaModel(out)


def test_words_are_written_as_the_vocabulary_does_and_strange_ones_are_named(corpus, capfd):
    model = run(corpus, "--text", str(corpus / "text.gz"), "--vocab", str(corpus / "vocab"))
    assert model.knows("cat") and not model.knows("CAT")
    said = capfd.readouterr().err
    assert "cannot spell 2 of" in said and "café (1x)" in said


def test_transcripts_lose_their_ids_and_tokens_are_those_of_the_vocabulary(corpus):
    model = run(corpus, "--transcripts", str(corpus))
    assert model.knows("cat") and not model.knows("u3")
    options = ["--text", str(corpus / "text.gz"), "--vocab", str(corpus / "vocab")]
    model = run(corpus, *options, "--unit", "token")
    assert model.knows("<space>") and model.knows("c") and not model.knows("cat")
    assert run(corpus, "--transcripts", str(corpus), "--unit", "char").knows("<space>")


def test_an_unchanged_text_is_not_counted_again(corpus, capfd):
    options = ["--transcripts", str(corpus)]
    run(corpus, *options)
    before = (corpus / "lm.arpa.gz").read_bytes()
    run(corpus, *options)
    assert "up to date" in capfd.readouterr().err
    run(corpus, *options, "--force")
    assert (corpus / "lm.arpa.gz").read_bytes() == before
    run(corpus, *options, "--prune", "0", "1")
    assert (corpus / "lm.arpa.gz").read_bytes() != before


@pytest.mark.parametrize(
    ("text", "options", "sentence"),
    [
        ("a b\n", [], "discounts of Kneser-Ney cannot be computed"),
        ("a <s> b\n", ["--discount-fallback"], "contains the word <s>"),
        ("\n", ["--discount-fallback"], "there are no words"),
        ("a b\n", ["--prune", "1", "0"], "pruning thresholds are"),
        ("a b\n", ["--order", "0"], "the order is 0"),
        ("a b\n", ["--unit", "token"], "needs the vocabulary folder"),
    ],
)
def test_what_gives_no_model_is_one_sentence(tmp_path, text, options, sentence):
    (tmp_path / "t").write_text(text)
    with pytest.raises(UserError, match=sentence):
        ngram.main(["--text", str(tmp_path / "t"), "--out", str(tmp_path / "x.arpa"), *options])
    assert not (tmp_path / "x.arpa").exists()
