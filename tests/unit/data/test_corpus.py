"""What every data preparation shares: finding audio and text, leaving out what cannot be used, whole sets or none."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import corpus, datadir, prepared
from asrtool.types import Utterance


def record(path: Path, samples: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(samples, dtype="float32"), 16000)
    return path


def utterance(path: Path, name: str = "a-1") -> Utterance:
    return Utterance(id=name, audio=str(path), duration=0.5, text="HELLO", speaker="a")


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# -- finding ------------------------------------------------------------------


def test_audio_is_found_by_its_name_whatever_its_extension(tmp_path: Path) -> None:
    paths = [record(tmp_path / name) for name in ("x/a-1.flac", "x/y/a-2.wav", "a-3.OGG")]
    (tmp_path / "notes.txt").touch()
    assert corpus.audio_by_id(tmp_path) == {path.stem: path for path in paths}


def test_the_hidden_files_that_macos_adds_are_no_audio(tmp_path: Path) -> None:
    path = record(tmp_path / "a-1.flac")
    (tmp_path / "._a-1.flac").touch()
    assert corpus.audio_by_id(tmp_path) == {"a-1": path}


def test_two_audio_files_of_one_name_are_refused(tmp_path: Path) -> None:
    record(tmp_path / "x" / "a-1.flac")
    record(tmp_path / "y" / "a-1.wav")
    with pytest.raises(corpus.CorpusError, match=r"two .* 'a-1', remove one: .*x/a-1\.flac, .*y/a-1\.wav"):
        corpus.audio_by_id(tmp_path / "y", tmp_path / "x")


# -- texts --------------------------------------------------------------------


def test_byte_order_mark_crlf_tabs_and_blank_lines_do_not_change_a_text(tmp_path: Path) -> None:
    transcript = write(tmp_path / "text", b"\xef\xbb\xbfa-1 ONE  TWO\r\n\r\na-2\tTHREE\r\n")
    files = {"a-1": tmp_path / "1", "a-2": tmp_path / "2"}
    pairs, left_out = corpus.pair([transcript], files, r"a-\d")
    assert [(pair.id, pair.text) for pair in pairs] == [("a-1", "ONE TWO"), ("a-2", "THREE")]
    assert left_out == []


def test_text_without_audio_and_audio_without_text_are_both_named(tmp_path: Path) -> None:
    transcript = write(tmp_path / "text", "a-1 ONE\na-2 TWO\n")
    pairs, left_out = corpus.pair([transcript], {"a-1": tmp_path / "1", "a-3": tmp_path / "3"}, r"a-\d")
    assert [pair.id for pair in pairs] == ["a-1"]
    assert left_out == [
        f"a-2: has a text, {transcript}:2, but no audio file has this name",
        f"a-3: {tmp_path / '3'} has no text",
    ]


def test_a_second_text_for_an_id_is_refused_and_both_lines_are_named(tmp_path: Path) -> None:
    first, second = write(tmp_path / "1", "a-1 ONE\n"), write(tmp_path / "2", "a-2 TWO\na-1 OTHER\n")
    with pytest.raises(corpus.CorpusError, match=f"{second}:2: a-1 has a text already, {first}:1"):
        corpus.pair([first, second], {}, r"a-\d")


def test_a_line_that_does_not_begin_with_an_id_is_named(tmp_path: Path) -> None:
    with pytest.raises(corpus.CorpusError, match=r"text:2: expected an utterance id .* got 'TWO'"):
        corpus.pair([write(tmp_path / "text", "a-1 ONE\nTWO\n")], {}, r"a-\d")


def test_a_transcript_in_another_encoding_is_named(tmp_path: Path) -> None:
    with pytest.raises(corpus.CorpusError, match="text: expected UTF-8, byte 4 is not"):
        corpus.pair([write(tmp_path / "text", b"a-1 \xe9")], {}, r"a-\d")


# -- audio that cannot be used ---------------------------------------------------


def test_unreadable_empty_and_sampleless_audio_is_left_out_with_its_reason(tmp_path: Path) -> None:
    good = record(tmp_path / "good.flac")
    bad = {"zero": write(tmp_path / "zero.flac", b""), "none": record(tmp_path / "none.wav", samples=0)}
    bad |= {"cut": write(tmp_path / "cut.flac", good.read_bytes()[:20]), "gone": tmp_path / "gone.flac"}
    found = corpus.measured([utterance(path, name) for name, path in {"good": good, **bad}.items()])
    assert [(row.id, row.duration) for row in found.utterances] == [("good", 0.5)]
    assert [sentence.split(":")[0] for sentence in found.left_out] == list(bad)
    assert all(str(path) in sentence for path, sentence in zip(bad.values(), found.left_out, strict=True))


# -- writing --------------------------------------------------------------------


def test_what_is_left_out_is_counted_and_listed_beside_the_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus.logger, "propagate", True)
    sentences = [f"a-{n}: no good" for n in range(2, 12)]
    with caplog.at_level(logging.WARNING, "asrtool"):
        corpus.write_set(tmp_path / "train", lambda _: corpus.Found([utterance(tmp_path / "1")], sentences))
    assert "10 left out:" in caplog.text
    assert "a-6: no good" in caplog.text
    assert "and 5 more, all listed in" in caplog.text
    assert (tmp_path / "train" / corpus.SKIPPED).read_text().splitlines() == sentences
    assert [row.id for row in datadir.read(tmp_path / "train")] == ["a-1"]


@pytest.mark.parametrize("error", [corpus.CorpusError("no"), KeyboardInterrupt()])
def test_a_set_that_fails_leaves_the_old_one_and_nothing_new(tmp_path: Path, error: BaseException) -> None:
    corpus.write_set(tmp_path / "train", lambda _: corpus.Found([utterance(tmp_path / "1")], []))
    before = (tmp_path / "train" / "text").read_bytes()

    def fail(target: Path) -> corpus.Found:
        (target / "half").touch()
        raise error

    with pytest.raises(type(error)):
        corpus.write_set(tmp_path / "train", fail, options={"other": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["train"]
    assert (tmp_path / "train" / "text").read_bytes() == before


def test_a_set_without_a_usable_utterance_is_an_error_and_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(corpus.CorpusError, match="train: not one utterance can be used"):
        corpus.write_set(tmp_path / "train", lambda _: corpus.Found([], ["a-1: no good"]))
    assert list(tmp_path.iterdir()) == []


def test_an_unchanged_set_is_not_made_again(tmp_path: Path) -> None:
    calls = []

    def build(target: Path) -> corpus.Found:
        calls.append(target)
        return corpus.Found([utterance(tmp_path / "1")], [])

    for options in ({"a": 1}, {"a": 1}, {"a": 2}):
        corpus.write_set(tmp_path / "train", build, options=options)
    assert len(calls) == 2


# -- prepared sets ----------------------------------------------------------------


def prepare(folder: Path, names: tuple[str, ...] = ("train", "dev", "test")) -> None:
    for name in names:
        record(folder / "audio" / f"{name}-1.flac")
        (folder / name).mkdir()
        write(folder / name / "wav.scp", f"{name}-1 audio/{name}-1.flac\n")
        write(folder / name / "text", f"{name}-1 HELLO\n")


def test_relative_paths_of_prepared_sets_start_at_the_folder_that_holds_them(tmp_path: Path) -> None:
    prepare(tmp_path / "in")
    assert prepared.write(prepared.find(tmp_path / "in"), tmp_path / "out") == ["test"]
    (row,) = datadir.read(tmp_path / "out" / "dev")
    assert (row.id, row.text, row.duration) == ("dev-1", "HELLO", 0.5)  # measured, since there is no utt2dur
    assert Path(row.audio) == tmp_path / "in" / "audio" / "dev-1.flac"


def test_a_prepared_set_in_another_place_is_made_again(tmp_path: Path) -> None:
    prepare(tmp_path / "here")
    prepared.write(prepared.find(tmp_path / "here"), tmp_path / "out")
    (tmp_path / "here").rename(tmp_path / "there")
    prepared.write(prepared.find(tmp_path / "there"), tmp_path / "out")
    (row,) = datadir.read(tmp_path / "out" / "train")
    assert Path(row.audio).exists()


def test_data_directories_without_a_train_are_not_taken_for_a_prepared_corpus(tmp_path: Path) -> None:
    prepare(tmp_path, ("dev", "test"))
    assert prepared.find(tmp_path) == {}


def test_a_corpus_folder_that_does_not_exist_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(corpus.CorpusError, match="there is no corpus folder 'nowhere' \\(looked in "):
        corpus.parser("Some corpus.").parse_args(["--corpus", "nowhere", "--out", str(tmp_path)])


def test_a_missing_prepared_set_is_named(tmp_path: Path) -> None:
    prepare(tmp_path, ("train", "test"))
    with pytest.raises(corpus.CorpusError, match=r"expected prepared sets train, dev and test .*, found test, train"):
        prepared.write(prepared.find(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()
