from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from asrtool.errors import UserError
from asrtool.searchers import arpa, ngram
from asrtool.searchers.arpa import LN10
from asrtool.searchers.ngram import ArpaModel, KenlmModel, sentence

KENLM = json.loads(
    (Path(__file__).parents[2] / "golden/data/ngram_kenlm.json").read_text(encoding="utf-8")
)

SMALL = """\\data\\
ngram 1=5
ngram 2=3
ngram 3=1

\\1-grams:
-1.0\t<unk>
-99\t<s>\t-0.5
-1.1\t</s>
-0.7\ta\t-0.2
-0.8\tb\t-0.3

\\2-grams:
-0.4\t<s> a\t-0.1
-0.6\ta b
-0.9\tb </s>

\\3-grams:
-0.05\t<s> a b

\\end\\
"""


def write(folder: Path, text: str, name: str = "model.arpa") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("case", KENLM, ids=["bigrams", "trigrams", "4-grams"])
def test_every_word_of_a_sentence_gets_what_kenlm_gives_it(case, tmp_path):
    """KenLM sums in float32."""
    model = ArpaModel(write(tmp_path, case["arpa"]))
    for words, log10 in zip(case["sentences"], case["log10"], strict=True):
        state, found = model.start(), []
        for word in words:
            value, state = model.score(state, word)
            found.append(value)
        assert [*found, model.end(state)] == pytest.approx(
            [value * LN10 for value in log10], abs=2e-6
        )


@pytest.mark.parametrize("case", KENLM, ids=["bigrams", "trigrams", "4-grams"])
def test_kenlm_where_it_is_installed(case, tmp_path):
    pytest.importorskip("kenlm")
    path = write(tmp_path, case["arpa"])
    for words in case["sentences"]:
        assert sentence(KenlmModel(path), words) == pytest.approx(
            sentence(ArpaModel(path), words), abs=1e-5
        )


def test_backing_off_by_hand(tmp_path):
    model = ngram.load(write(tmp_path, SMALL))
    assert sentence(model, ["a", "b"]) == pytest.approx((-0.4 - 0.05 - 0.9) * LN10, abs=1e-6)
    assert sentence(model, ["b", "a"]) == pytest.approx(
        (-0.5 - 0.8 - 0.3 - 0.7 - 0.2 - 1.1) * LN10, abs=1e-6
    )
    assert sentence(model, ["a", "a"]) == pytest.approx(
        (-0.4 - 0.1 - 0.2 - 0.7 - 0.2 - 1.1) * LN10, abs=1e-6
    )
    assert sentence(model, ["zz"]) == pytest.approx((-0.5 - 1.0 - 1.1) * LN10, abs=1e-6)
    assert model.knows("a") and not model.knows("zz")


def test_a_history_that_the_file_lacks_is_added_and_changes_no_probability(tmp_path):
    """Of `a b` only its continuation is there: p(b | a) is what backing off gives, p(</s> | <s> a
    b) is not lost.
    """
    text = (
        SMALL.replace("ngram 2=3", "ngram 2=2")
        .replace("-0.6\ta b\n", "")
        .replace("<s> a b\n", "a b </s>\n")
    )
    model = ArpaModel(write(tmp_path, text))
    assert sentence(model, ["a", "b"]) == pytest.approx(
        (-0.4 - 0.1 - 0.2 - 0.8 - 0.05) * LN10, abs=1e-6
    )


def test_a_model_of_single_words(tmp_path):
    text = "\\data\\\nngram 1=3\n\\1-grams:\n-1 <s>\n-0.5 </s>\n-0.25 a\n\\end\\\n"
    assert sentence(ArpaModel(write(tmp_path, text)), ["a", "a"]) == pytest.approx(-LN10)


def test_without_an_unknown_word_kenlms_value_stands(tmp_path):
    text = "\\data\\\nngram 1=2\n\\1-grams:\n-1 <s>\n-0.5 </s>\n\\end\\\n"
    assert ArpaModel(write(tmp_path, text)).score(0, "a")[0] == pytest.approx(-100 * LN10)


def test_a_row_holds_what_every_word_would_get(tmp_path):
    draw = random.Random(0)
    for case in KENLM:
        model = ArpaModel(write(tmp_path, case["arpa"]))
        words = ["a", "b", "ab", "</s>", "zz", "é"]
        ids = np.array([model.id_of(word) for word in words], dtype=np.int32)
        for _ in range(20):
            state = model.start()
            for word in draw.choices(words, k=draw.randint(0, 5)):
                state = model.score(state, word)[1]
            row = np.empty(len(words))
            ngram.fill_row(model.trie, state, ids, row, np.empty(model.num_words))
            assert row == pytest.approx([model.score(state, word)[0] for word in words], abs=1e-9)


def test_compressed_files_and_memory(tmp_path):
    path = tmp_path / "model.arpa.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write(SMALL)
    trie = arpa.read(path).trie
    assert trie.word.nbytes + trie.prob.nbytes == 8 * 10  # nine n-grams and the empty history
    assert trie.backoff.nbytes + trie.begin.nbytes + trie.suffix.nbytes == 12 * 9 + 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("\\1-grams:", "1-grams:"), "it has no .data. header"),
        (("ngram 2=3", "ngram 2=4"), ":18: 3 2-grams, but the header says 4"),
        (("-0.6\ta b", "-0.6\ta c"), ":15: the word 'c' is not among the 1-grams"),
        (("-0.6\ta b", "x\ta b"), ":15: expected log10 probability, 2 words"),
        (("-0.6\ta b", "-0.6\ta"), ":15: expected log10 probability, 2 words"),
        (("-0.8\tb", "-0.8\ta"), ":11: the word 'a' occurs twice"),
        (("\\end\\\n", ""), "ends within its 3-grams"),
        (("</s>", "</t>"), "has no </s>"),
    ],
    ids=str,
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(change, message, tmp_path):
    path = write(tmp_path, SMALL.replace(*change))
    with pytest.raises(UserError, match=message):
        ngram.load(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SMALL.replace("ngram 2=3", "ngram 2=30000000000").encode(), "promises 30,000,000,006 n-"),
        (SMALL[:60].encode() + bytes(1 << 26), ":8: a line of more than 1,048,576 bytes"),
        (bytes(1 << 26), ":1: a line of more than 1,048,576 bytes"),
        (None, "damaged or truncated"),
    ],
    ids=["counts", "zeros within", "zeros", "truncated"],
)
def test_a_packed_file_that_unpacks_to_far_more_takes_no_memory(content, message, tmp_path):
    path = tmp_path / "model.arpa.gz"
    packed = gzip.compress(SMALL.encode() if content is None else content)
    path.write_bytes(packed[:-20] if content is None else packed)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=message):
            ngram.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="no.arpa: no such"):
        ngram.load(tmp_path / "no.arpa")


def test_a_binary_file_needs_kenlm(tmp_path, monkeypatch):
    path = tmp_path / "model.bin"
    path.write_bytes(ngram.KENLM_MAGIC + b" and so on")
    monkeypatch.setitem(__import__("sys").modules, "kenlm", None)
    with pytest.raises(UserError, match="pip install kenlm"):
        ngram.load(path)
