"""What every data preparation shares: leaving out what cannot be used, subsets, all sets or none,
prepared sets.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import corpus, prepared
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.types import Utterance


def record(path: Path, samples: int = 8000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(samples, dtype="float32"), 16000)
    return path


def utterance(path: Path, name: str = "a-1") -> Utterance:
    return Utterance(id=name, audio=str(path), duration=0.5, text="HELLO", speaker="a")


def save(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write(out: Path, found: corpus.CorpusSet) -> None:
    corpus.write_sets(out, {"train": corpus.Source(lambda _: found)})


def write_prepared(folder: Path, out: Path) -> list[str]:
    sets = prepared.sources(prepared.find(folder))
    corpus.write_sets(out, sets)
    return list(sets)


# -- audio that cannot be used ---------------------------------------------------


def test_unreadable_empty_and_sampleless_audio_is_left_out_with_its_reason(tmp_path: Path) -> None:
    good = record(tmp_path / "good.flac")
    more = {f"good-{n}": good for n in range(40)}
    bad = {
        "zero": save(tmp_path / "zero.flac", b""),
        "none": record(tmp_path / "none.wav", samples=0),
    }
    bad |= {
        "cut": save(tmp_path / "cut.flac", good.read_bytes()[:20]),
        "gone": tmp_path / "gone.flac",
    }
    found = corpus.measured([utterance(path, name) for name, path in {**more, **bad}.items()])
    assert [(row.id, row.duration) for row in found.utterances] == [(name, 0.5) for name in more]
    assert [sentence.split(":")[0] for sentence in found.left_out] == list(bad)
    assert all(
        str(path) in sentence for path, sentence in zip(bad.values(), found.left_out, strict=True)
    )


def test_more_than_a_tenth_of_unusable_audio_is_an_error(tmp_path: Path) -> None:
    good = record(tmp_path / "good.flac")
    rows = [utterance(good if n < 6 else tmp_path / f"{n}.wav", f"a-{n}") for n in range(10)]
    with pytest.raises(
        UserError,
        match=r"4 of 10 audio files cannot be used; first a-6: " r".*/6\.wav: no such",
    ):
        corpus.measured(rows)


def test_a_subset_is_the_same_whatever_the_order_and_grows_with_its_hours(tmp_path: Path) -> None:
    rows = [utterance(tmp_path, f"a-{n}") for n in range(1000)]
    small, large = ({row.id for row in corpus.subset(rows, hours)} for hours in (0.01, 0.02))
    assert len(small) == 72  # of half a second
    assert small < large
    assert {row.id for row in corpus.subset(rows[::-1], 0.01)} == small
    assert max(int(name[2:]) for name in small) > 800  # not the first ones


@pytest.mark.parametrize(
    ("count", "characters", "said"),
    [
        (2, None, ""),
        (3, None, "2 utterances, officially 3"),
        (2, 11, "10 characters, officially 11"),
        (2, 10, "as expected"),
    ],
)
def test_counts_that_are_not_the_official_ones_are_said(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch,
    count: int,
    characters: int | None,
    said: str,
) -> None:
    monkeypatch.setattr(corpus.logger, "propagate", True)
    with caplog.at_level(logging.INFO, "asrtool"):
        corpus.compare("test", [utterance(tmp_path), utterance(tmp_path)], count, characters)
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


# -- writing --------------------------------------------------------------------


def test_what_is_left_out_is_counted_and_listed_beside_the_set(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus.logger, "propagate", True)
    sentences = [f"a-{n}: no good" for n in range(2, 12)]
    with caplog.at_level(logging.WARNING, "asrtool"):
        write(tmp_path, corpus.CorpusSet([utterance(tmp_path / "1")], sentences))
    assert "10 left out:" in caplog.text
    assert "a-6: no good" in caplog.text
    assert "and 5 more, all listed in" in caplog.text
    assert (tmp_path / "train" / corpus.SKIPPED).read_text().splitlines() == sentences
    assert [row.id for row in datadir.read(tmp_path / "train")] == ["a-1"]


@pytest.mark.parametrize("error", [UserError("no"), KeyboardInterrupt()])
def test_a_set_that_fails_leaves_the_old_one_and_nothing_new(
    tmp_path: Path, error: BaseException
) -> None:
    write(tmp_path, corpus.CorpusSet([utterance(tmp_path / "1")], []))
    before = (tmp_path / "train" / "text").read_bytes()

    def fail(target: Path) -> corpus.CorpusSet:
        (target / "half").touch()
        raise error

    with pytest.raises(type(error)):
        sets = {"dev": corpus.Source(lambda _: corpus.CorpusSet([utterance(tmp_path / "1")], []))}
        corpus.write_sets(tmp_path, {**sets, "train": corpus.Source(fail, options={"other": 1})})
    assert [path.name for path in tmp_path.iterdir()] == ["train"]  # nor the set that was ready
    assert (tmp_path / "train" / "text").read_bytes() == before


def test_a_set_without_a_usable_utterance_is_an_error_and_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train: none of the utterances can be used"):
        write(tmp_path, corpus.CorpusSet([], ["a-1: no good"]))
    assert list(tmp_path.iterdir()) == []


def test_an_unchanged_set_is_not_made_again(tmp_path: Path) -> None:
    calls = []

    def build(target: Path) -> corpus.CorpusSet:
        calls.append(target)
        return corpus.CorpusSet([utterance(tmp_path / "1")], [])

    for options in ({"a": 1}, {"a": 1}, {"a": 2}):
        corpus.write_sets(tmp_path, {"train": corpus.Source(build, options=options)})
    assert len(calls) == 2


# -- prepared sets ----------------------------------------------------------------


def prepare(folder: Path, names: tuple[str, ...] = ("train", "dev", "test")) -> None:
    for name in names:
        record(folder / "audio" / f"{name}-1.flac")
        (folder / name).mkdir()
        save(folder / name / "wav.scp", f"{name}-1 audio/{name}-1.flac\n")
        save(folder / name / "text", f"{name}-1 HELLO\n")


def test_relative_paths_of_prepared_sets_start_at_the_folder_that_holds_them(
    tmp_path: Path,
) -> None:
    prepare(tmp_path / "in")
    assert write_prepared(tmp_path / "in", tmp_path / "out") == ["train", "dev", "test"]
    (row,) = datadir.read(tmp_path / "out" / "dev")
    # measured, since there is no utt2dur
    assert (row.id, row.text, row.duration) == ("dev-1", "HELLO", 0.5)
    assert Path(row.audio) == tmp_path / "in" / "audio" / "dev-1.flac"


def test_a_prepared_set_in_another_place_is_made_again(tmp_path: Path) -> None:
    prepare(tmp_path / "here")
    write_prepared(tmp_path / "here", tmp_path / "out")
    (tmp_path / "here").rename(tmp_path / "there")
    write_prepared(tmp_path / "there", tmp_path / "out")
    (row,) = datadir.read(tmp_path / "out" / "train")
    assert Path(row.audio).exists()


def test_data_directories_without_a_train_are_not_taken_for_a_prepared_corpus(
    tmp_path: Path,
) -> None:
    prepare(tmp_path, ("dev", "test"))
    assert prepared.find(tmp_path) == {}


def test_a_corpus_folder_that_does_not_exist_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        corpus.parser("Some corpus.").parse_args(["--corpus", "nowhere", "--out", str(tmp_path)])
    assert "there is no corpus folder 'nowhere' (current folder: " in capsys.readouterr().err


def test_a_missing_prepared_set_is_named(tmp_path: Path) -> None:
    prepare(tmp_path, ("train", "test"))
    with pytest.raises(
        UserError,
        match=r"expected prepared sets train, dev and test .*, " r"got test, train",
    ):
        write_prepared(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
