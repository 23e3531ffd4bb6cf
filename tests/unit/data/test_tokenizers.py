from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asrtool.data import tokenizers
from asrtool.errors import UserError
from asrtool.registry import UnknownName

LINES = ["hello world foo bar", "the quick brown fox", "你好 世界 dé"] * 3
KINDS = [("char", 0, "unigram"), ("bpe", 60, "unigram"), ("bpe", 60, "bpe")]


@pytest.fixture(scope="module", params=KINDS, ids=["char", "unigram", "bpe"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tokenizers.Tokenizer:
    unit, size, model = request.param
    return tokenizers.train(LINES, unit, size, tmp_path_factory.mktemp("vocab"), model)


@settings(deadline=None, max_examples=50)
@given(text=st.text(alphabet=sorted(set("".join(LINES))), max_size=40))
def test_decoding_gives_back_what_was_encoded_but_for_spaces(
    tokenizer: tokenizers.Tokenizer, text: str
) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == " ".join(text.split())


def test_special_tokens_have_their_places(tokenizer: tokenizers.Tokenizer) -> None:
    assert tokenizer.tokens[:2] == ["<blank>", "<unk>"]
    assert tokenizer.tokens[-1] == "<sos/eos>"
    assert (tokenizer.blank, tokenizer.unk, tokenizer.eos, tokenizer.size) == (
        0,
        1,
        tokenizer.size - 1,
        len(tokenizer.tokens),
    )


def test_no_text_uses_blank_unk_or_eos(tokenizer: tokenizers.Tokenizer) -> None:
    ids = {i for line in LINES for i in tokenizer.encode(line)}
    assert not ids & {tokenizer.blank, tokenizer.unk, tokenizer.eos}


def test_a_character_that_the_vocabulary_lacks_becomes_unk_and_is_told(
    tokenizer: tokenizers.Tokenizer,
) -> None:
    assert tokenizer.unk in tokenizer.encode("hello ü")
    assert tokenizer.decode(tokenizer.encode("hello ü")) == "hello <unk>"
    assert tokenizer.unknown("hello ü zü") == ["ü", "z", "ü"]
    assert tokenizer.unknown("hello  world") == []


def test_an_empty_text_has_no_tokens(tokenizer: tokenizers.Tokenizer) -> None:
    assert tokenizer.encode("") == tokenizer.encode("  ") == []
    assert tokenizer.decode([]) == ""


def test_blank_and_eos_have_no_text(tokenizer: tokenizers.Tokenizer) -> None:
    ids = tokenizer.encode("fox")
    assert tokenizer.decode([tokenizer.blank, *ids, tokenizer.eos]) == "fox"


@pytest.mark.parametrize(("unit", "size", "model"), KINDS)
def test_the_same_lines_give_the_same_files(
    unit: str, size: int, model: str, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        tokenizers.train(LINES, unit, size, tmp_path / name, model)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(("unit", "size", "model"), KINDS)
def test_a_loaded_tokenizer_is_the_one_that_was_trained(
    unit: str, size: int, model: str, tmp_path: Path
) -> None:
    trained = tokenizers.train(LINES, unit, size, tmp_path, model)
    loaded = tokenizers.load(tmp_path)
    assert loaded.tokens == trained.tokens
    assert loaded.encode(LINES[0]) == trained.encode(LINES[0])


def test_a_char_vocabulary_is_sorted(tmp_path: Path) -> None:
    tokens = tokenizers.train(["b a c", "é"], "char", 0, tmp_path).tokens
    assert tokens == ["<blank>", "<unk>", "<space>", "a", "b", "c", "é", "<sos/eos>"]


def test_a_char_vocabulary_of_a_size_keeps_the_most_frequent_characters(tmp_path: Path) -> None:
    tokens = tokenizers.train(["aaaa", "bb", "cccz"], "char", 5, tmp_path).tokens
    assert tokens == ["<blank>", "<unk>", "a", "c", "<sos/eos>"]


@pytest.mark.parametrize("model", ["unigram", "bpe"])
def test_a_bpe_vocabulary_has_at_most_the_size_asked_for(model: str, tmp_path: Path) -> None:
    size = len(set(" ".join(LINES))) + 5
    assert tokenizers.train(LINES, "bpe", size, tmp_path, model).size <= size


def test_a_tiny_corpus_gets_the_pieces_it_has(tmp_path: Path) -> None:
    assert tokenizers.train(["ab ab"], "bpe", 5000, tmp_path).size < 10


@pytest.mark.parametrize(
    ("lines", "unit", "size", "message"),
    [
        (["", " "], "char", 0, "no text"),
        (LINES, "char", 3, "no room"),
        (LINES, "bpe", 10, "the characters alone need 27"),
    ],
)
def test_what_cannot_be_made_is_refused_with_a_reason(
    lines: list[str], unit: str, size: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        tokenizers.train(lines, unit, size, tmp_path)


def test_the_smallest_size_that_the_message_names_works(tmp_path: Path) -> None:
    assert tokenizers.train(LINES, "bpe", 27, tmp_path).size == 27


def test_an_unknown_unit_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'char'"):
        tokenizers.train(LINES, "chars", 0, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokens.txt", "<blank>\na\n<sos/eos>\n", "expected <blank> and <unk>"),
        ("tokens.txt", "<blank>\n<unk>\na\na\n<sos/eos>\n", "'a' is listed twice"),
        ("tokens.txt", "<blank>\n<unk>\nab\n<sos/eos>\n", "'ab' is more than one character"),
        ("tokenizer.json", '{"type": "cha"}', "did you mean 'char'"),
        ("tokenizer.json", "{", "does not describe a tokenizer"),
    ],
)
def test_a_damaged_folder_is_refused_with_a_reason(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    tokenizers.train(LINES, "char", 0, tmp_path)
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        tokenizers.load(tmp_path)


def test_tokens_of_another_model_are_refused(tmp_path: Path) -> None:
    tokenizers.train(LINES, "bpe", 60, tmp_path)
    tokens = (tmp_path / "tokens.txt").read_text(encoding="utf-8").replace("\no\n", "\nooo\n")
    (tmp_path / "tokens.txt").write_text(tokens, encoding="utf-8")
    with pytest.raises(UserError, match="do not match"):
        tokenizers.load(tmp_path)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokens.txt is missing"):
        tokenizers.load(tmp_path / "missing")


def test_labels_are_optional(tmp_path: Path) -> None:
    assert tokenizers.load_labels(tmp_path) == {}
    (tmp_path / "labels.json").write_text('{"accent": ["a", "b"]}', encoding="utf-8")
    assert tokenizers.load_labels(tmp_path) == {"accent": ["a", "b"]}


@pytest.mark.parametrize("unit", ["char", "bpe"])
def test_the_pieces_of_a_text_read_the_text(unit: str, tmp_path: Path) -> None:
    tokenizer = tokenizers.train(LINES, unit, 60 if unit == "bpe" else 0, tmp_path)
    for line in LINES:
        ids = tokenizer.encode(line)
        assert "".join(tokenizer.piece(i) for i in ids).strip() == tokenizers.single_spaced(line)
    assert tokenizer.piece(tokenizer.blank) == tokenizer.piece(tokenizer.eos) == ""
    assert tokenizer.piece(tokenizer.unk) == "<unk>"


def test_a_vocabulary_of_a_language_model_without_its_folder_asks_nobody(tmp_path, monkeypatch):
    (tmp_path / "tokens.txt").write_text("a\nb\n")
    (tmp_path / "tokenizer.json").write_text('{"type": "hf", "case": "keep"}\n')
    monkeypatch.setattr(tokenizers, "load_hf", lambda *_: pytest.fail("the hub was asked"))
    with pytest.raises(UserError, match="is incomplete: hf/, the tokenizer of the"):
        tokenizers.load(tmp_path)
