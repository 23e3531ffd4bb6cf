from __future__ import annotations

from pathlib import Path

import pytest

from asrtool.bin import make_vocab
from asrtool.data import tokenizers
from asrtool.errors import UserError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "train"
    folder.mkdir()
    (folder / "text").write_text("u1 hello world\nu2\nu3 hallo wält\n", encoding="utf-8")
    (folder / "utt2accent").write_text("u1 south\nu2 far north\nu3 south\n", encoding="utf-8")
    for name in ("utt2spk", "utt2dur", "utt2uniq", "utt2num_frames", "utt2num_samples"):
        (folder / name).write_text("u1 1\nu2 2\nu3 3\n", encoding="utf-8")
    return folder


def run(data: Path, *more: str) -> Path:
    out = data.parent / "vocab"
    make_vocab.main(["--text", str(data / "text"), "--out", str(out), *more])
    return out


def test_it_makes_a_vocabulary_and_prints_its_size_and_first_tokens(
    data: Path, capsys: pytest.CaptureFixture
) -> None:
    out = run(data, "--unit", "char")
    assert tokenizers.load(out).encode("hello")
    assert (
        "vocab: 14 tokens: <blank> <unk> <space> a d e h l o r t w ä <sos/eos>"
        in capsys.readouterr().out
    )


def test_it_makes_pieces_and_says_when_the_text_has_fewer_than_asked_for(
    data: Path, capsys: pytest.CaptureFixture
) -> None:
    assert tokenizers.load(run(data, "--unit", "bpe", "--size", "100", "--model", "bpe")).size < 100
    assert "no more pieces; --size was 100" in capsys.readouterr().out


def test_it_numbers_the_values_of_every_label_in_their_order(data: Path) -> None:
    assert tokenizers.load_labels(run(data, "--unit", "char")) == {"accent": ["far north", "south"]}


def test_labels_can_be_chosen(data: Path) -> None:
    (data / "utt2style").write_text("u1 read\n", encoding="utf-8")
    assert set(tokenizers.load_labels(run(data, "--unit", "char", "--labels", "utt2style"))) == {
        "style"
    }
    assert tokenizers.load_labels(run(data, "--unit", "char", "--labels")) == {}


def test_a_label_that_is_nowhere_is_an_error(data: Path) -> None:
    with pytest.raises(UserError, match="no file utt2style"):
        run(data, "--unit", "char", "--labels", "accent", "style")


def test_labels_of_speakers_count_too(data: Path) -> None:
    (data / "spk2accent").write_text("1 west\n", encoding="utf-8")
    assert tokenizers.load_labels(run(data, "--unit", "char"))["accent"] == [
        "far north",
        "south",
        "west",
    ]


def test_it_does_nothing_where_nothing_changed(data: Path) -> None:
    made = (run(data, "--unit", "char") / "tokens.txt").stat().st_ino
    assert (run(data, "--unit", "char") / "tokens.txt").stat().st_ino == made
    assert (run(data, "--unit", "char", "--force") / "tokens.txt").stat().st_ino != made


def test_a_new_label_file_makes_it_again(data: Path) -> None:
    run(data, "--unit", "char")
    (data / "utt2style").write_text("u1 read\n", encoding="utf-8")
    assert set(tokenizers.load_labels(run(data, "--unit", "char"))) == {"accent", "style"}


def test_rare_characters_are_named(data: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="asrtool"):
        make_vocab.make(
            data.parent,
            make_vocab.parse(["--text", str(data / "text"), "--unit", "char", "--out", "x"]),
            [],
        )
    assert "10 characters that occur fewer than 5 times: 'a' (1x), 'd' (1x)" in caplog.text


def test_characters_without_a_token_are_counted(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = ["--text", str(data / "text"), "--unit", "char", "--size", "5", "--out", "x"]
    with caplog.at_level("INFO", logger="asrtool"):
        make_vocab.make(data.parent, make_vocab.parse(arguments), [])
    assert (
        "9 characters (57.143 % of the text) left out of the vocabulary, <unk> in its place"
        in caplog.text
    )


def test_a_failure_leaves_no_folder(data: Path) -> None:
    with pytest.raises(UserError, match="too small"):
        run(data, "--unit", "bpe", "--size", "5")
    assert not (data.parent / "vocab").exists()


def test_a_text_that_is_not_utf8_is_refused_with_file_and_line(data: Path) -> None:
    (data / "text").write_bytes(b"u1 hello\nu2 w\xe4lt\n")
    with pytest.raises(UserError, match="text:2: .*UTF-8"):
        run(data, "--unit", "char")


def test_the_tokens_of_the_text_are_counted(data):
    folder = run(data, "--unit", "char")
    tokenizer, counts = tokenizers.load(folder), tokenizers.load_counts(folder)
    texts = [
        line.split(maxsplit=1)[1].strip()
        for line in (data / "text").read_text().splitlines()
        if " " in line
    ]
    expected = [
        sum(tokenizer.encode(text).count(token) for text in texts)
        for token in range(tokenizer.size)
    ]
    assert counts == expected and sum(counts) > 0 and counts[0] == counts[-1] == 0


def test_a_folder_without_counts_has_none(tmp_path):
    assert tokenizers.load_counts(tmp_path) is None
