"""Stage 0 of librispeech: a small official tree, broken trees, and real recordings."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from tests import warm_python
from tests.recipes.preparation import ROOT, content, prepare, real

LIBRI_LIGHT = [
    f"{hours}/{kind}"
    for hours in (*(f"1h/{fold}" for fold in range(6)), "9h")
    for kind in ("clean", "other")
]
PARTS = ("train-clean-100", "dev-clean", "test-clean", "test-other")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with four official parts, one reader each, two chapters of three utterances."""
    root = tmp_path / "corpus" / "LibriSpeech"
    noise = np.random.default_rng(0).normal(0, 0.1, 16000)
    for reader, part in enumerate(PARTS, 11):
        for chapter in (7, 8):
            folder = root / part / str(reader) / str(chapter)
            folder.mkdir(parents=True)
            names = [f"{reader}-{chapter}-{number:04d}" for number in range(3)]
            for name in names:
                soundfile.write(folder / f"{name}.flac", noise, 16000)
            text = "".join(f"{name} THE WORDS OF {part.upper()}\n" for name in names)
            (folder / f"{reader}-{chapter}.trans.txt").write_text(text)
    (root / "SPEAKERS.TXT").write_text(
        ";ID |SEX| SUBSET\n11 | F | train-clean-100 | 25.03 | Kay\n12 | M | dev-clean | 8 |\n"
    )
    return root


def chapter(tree: Path, part: str = "train-clean-100") -> Path:
    return tree / part / str(11 + PARTS.index(part)) / "7"


def test_librispeech_becomes_four_sets_from_the_folder_or_the_one_above(
    tree: Path, tmp_path: Path
) -> None:
    for number, source in enumerate((tree, tree.parent)):
        out = tmp_path / str(number)
        prepare("librispeech", source, out)
        assert sorted(path.name for path in out.iterdir()) == [
            "dev",
            "test_clean",
            "test_other",
            "test_sets",
            "train",
        ]
        assert (out / "test_sets").read_text() == "test_clean test_other\n"
        assert not [problem for name in ("train", "dev") for problem in datadir.check(out / name)]
    row = datadir.read(tmp_path / "0" / "train")[0]
    assert (row.id, row.text, row.speaker, row.duration) == (
        "11-7-0000",
        "THE WORDS OF TRAIN-CLEAN-100",
        "11",
        1.0,
    )
    assert row.labels == {"gender": "f"}
    assert row.audio == str(chapter(tree) / "11-7-0000.flac")


def test_a_second_run_changes_nothing_and_another_folder_gives_the_same_bytes(
    tree: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    prepare("librispeech", tree, tmp_path / "a")
    first = content(tmp_path / "a")
    log.clear()
    prepare("librispeech", tree, tmp_path / "a")
    assert log.text.count("is up to date") == 4
    prepare("librispeech", tree, tmp_path / "b")
    assert content(tmp_path / "a") == content(tmp_path / "b") == first


def test_a_changed_transcript_makes_only_its_set_again(
    tree: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    prepare("librispeech", tree, tmp_path / "out")
    transcript = chapter(tree, "dev-clean") / "12-7.trans.txt"
    transcript.write_text(transcript.read_text().replace("WORDS", "TEXT"))
    log.clear()
    prepare("librispeech", tree, tmp_path / "out")
    assert log.text.count("is up to date") == 3
    assert datadir.read(tmp_path / "out" / "dev")[0].text == "THE TEXT OF DEV-CLEAN"


def test_missing_parts_are_named_in_one_message_and_the_rest_goes_on(
    tree: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(tree / "test-clean")
    prepare("librispeech", tree, tmp_path / "out")
    (message,) = [record.getMessage() for record in log.records if "lacks" in record.getMessage()]
    assert message.endswith(
        "lacks train-clean-360, train-other-500, dev-other, test-clean; continuing without them"
    )
    assert (tmp_path / "out" / "test_sets").read_text() == "test_other\n"


def test_only_the_chosen_parts_are_trained_on(tree: Path, tmp_path: Path) -> None:
    shutil.copytree(tree / "dev-clean", tree / "train-clean-360")
    prepare("librispeech", tree, tmp_path / "out", "--train-set", "train_460")
    assert {row.speaker for row in datadir.read(tmp_path / "out" / "train_460")} == {"11", "12"}


def test_the_number_of_utterances_is_compared_with_the_official_one_except_in_miniatures(
    tree: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    prepare("librispeech", tree, tmp_path / "a")
    assert "train-clean-100: 6 utterances, officially 28539" in log.text
    log.clear()
    (tree / "mini_corpus.json").touch()
    prepare("librispeech", tree, tmp_path / "b")
    assert not [record for record in log.records if record.levelno >= logging.WARNING]


def test_crlf_and_a_byte_order_mark_make_no_difference(tree: Path, tmp_path: Path) -> None:
    prepare("librispeech", tree, tmp_path / "a")
    for transcript in tree.rglob("*.trans.txt"):
        transcript.write_bytes(b"\xef\xbb\xbf" + transcript.read_bytes().replace(b"\n", b"\r\n"))
    prepare("librispeech", tree, tmp_path / "b")
    assert (tmp_path / "a" / "train" / "text").read_bytes() == (
        tmp_path / "b" / "train" / "text"
    ).read_bytes()


def test_utterances_without_usable_audio_or_text_are_left_out_and_named(
    tree: Path, tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    folder = chapter(tree)
    (folder / "11-7-0000.flac").unlink()
    (folder / "11-7-0001.flac").write_bytes(b"")
    (folder / "11-7-0002.flac").write_bytes((folder / "11-7-0002.flac").read_bytes()[:30])
    shutil.copy(tree / "train-clean-100" / "11" / "8" / "11-8-0000.flac", folder / "11-7-0003.flac")
    prepare("librispeech", tree, tmp_path / "out")
    assert "4 left out" in log.text
    sentences = (tmp_path / "out" / "train" / "skipped.txt").read_text().splitlines()
    assert sorted(sentence.split(":")[0] for sentence in sentences) == [
        f"11-7-000{number}" for number in range(4)
    ]
    assert [row.id for row in datadir.read(tmp_path / "out" / "train")] == [
        "11-8-0000",
        "11-8-0001",
        "11-8-0002",
    ]


def without_transcript(tree: Path) -> str:
    (chapter(tree) / "11-7.trans.txt").unlink()
    return (
        f"no transcript {chapter(tree) / '11-7.trans.txt'}; is train-clean-100.tar.gz unpacked "
        "completely?"
    )


def renamed(tree: Path) -> str:
    (tree / "train-clean-100").rename(tree / "train_clean_100")
    return (
        "expected at least a training, a development and a test part; the folder contains "
        "SPEAKERS.TXT, dev-clean, "
    )


def empty_part(tree: Path) -> str:
    shutil.rmtree(tree / "train-clean-100" / "11")
    return (
        "train-clean-100/<reader>/<chapter>/<reader>-<chapter>.trans.txt; is "
        "train-clean-100.tar.gz unpacked completely?"
    )


def twice(tree: Path) -> str:
    transcript = chapter(tree) / "11-7.trans.txt"
    transcript.write_text(transcript.read_text() + "11-7-0001 AGAIN\n")
    return f"{transcript}:4: 11-7-0001 already has a text, {transcript}:2; remove one"


def two_files(tree: Path) -> str:
    path = chapter(tree) / "11-7-0001.flac"
    soundfile.write(path.with_suffix(".wav"), np.zeros(100), 16000)
    return (
        f"two audio files have the name '11-7-0001'; remove one: {path}, {path.with_suffix('.wav')}"
    )


def without_id(tree: Path) -> str:
    transcript = chapter(tree) / "11-7.trans.txt"
    transcript.write_text("THE WORDS\n")
    return f"{transcript}:1: expected an utterance id"


@pytest.mark.parametrize(
    "damage", [without_transcript, renamed, empty_part, twice, two_files, without_id]
)
def test_a_broken_tree_is_one_sentence_and_nothing_is_written(
    tree: Path, tmp_path: Path, damage: Callable[[Path], str]
) -> None:
    expected = damage(tree)
    with pytest.raises(UserError) as error:
        prepare("librispeech", tree, tmp_path / "out")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*"))


def test_the_command_ends_with_one_line_that_says_what_is_wrong(tree: Path, tmp_path: Path) -> None:
    shutil.rmtree(tree / "dev-clean")
    script = ROOT / "egs" / "librispeech" / "local" / "prepare_data.py"
    command = [
        warm_python.python(),
        str(script),
        "--corpus",
        str(tree),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(
        f"prepare_data.py: '{tree}' lacks train-clean-360, train-other-500, dev-clean, "
    )
    assert done.stderr.count("\n") == 1


def test_a_training_set_that_does_not_exist_is_an_error(tree: Path, tmp_path: Path, capsys) -> None:
    with pytest.raises(SystemExit):
        prepare("librispeech", tree, tmp_path / "out", "--train-set", "train_360")
    assert "choose from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "count"), [("train_10min", 2), ("train_1h", 12), ("train_10h", 14)]
)
@pytest.mark.parametrize("place", ["LibriSpeech", "."])
def test_the_training_sets_of_libri_light_lie_inside_or_beside(
    tree: Path, tmp_path: Path, name: str, count: int, place: str
) -> None:
    for number, part in enumerate(LIBRI_LIGHT):
        folder = tree.parent / place / "librispeech_finetuning" / part / str(100 + number) / "1"
        folder.mkdir(parents=True)
        utterance = f"{100 + number}-1-0000"
        shutil.copy(chapter(tree) / "11-7-0000.flac", folder / f"{utterance}.flac")
        (folder / f"{100 + number}-1.trans.txt").write_text(f"{utterance} SOME WORDS\n")
    prepare("librispeech", tree, tmp_path / "out", "--train-set", name)
    assert len(datadir.read(tmp_path / "out" / name)) == count
    assert len(datadir.read(tmp_path / "out" / "dev")) == 6


def test_libri_light_that_is_not_there_is_named(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"there is no .*/LibriSpeech/librispeech_finetuning/1h; '.*' " r"contains SPEAK",
    ):
        prepare("librispeech", tree, tmp_path / "out", "--train-set", "train_1h")


def test_the_prepared_sets_of_real_speech_have_the_counts_of_their_description(
    tmp_path: Path,
) -> None:
    prepare("librispeech", real("librispeech_mini"), tmp_path)
    counts = {}
    for name in ("train", "dev", "test", "test_other"):
        rows = datadir.read(tmp_path / name)
        counts[name] = (
            len(rows),
            len({row.speaker for row in rows}),
            round(sum(row.duration for row in rows) / 3600, 2),
        )
        assert not [
            problem for problem in datadir.check(tmp_path / name) if problem.kind == "error"
        ]
    assert counts == {
        "train": (1195, 15, 2.79),
        "dev": (124, 2, 0.27),
        "test": (111, 2, 0.28),
        "test_other": (70, 7, 0.15),
    }
    assert (tmp_path / "test_sets").read_text() == "test test_other\n"


def test_the_official_tree_of_real_speech_is_read_whatever_the_audio_format(tmp_path: Path) -> None:
    prepare("librispeech", real("librispeech_mini") / "audio", tmp_path / "tree")
    prepare("librispeech", real("librispeech_mini"), tmp_path / "sets")
    tree = {
        row.id: row
        for name in ("train", "dev", "test_other")
        for row in datadir.read(tmp_path / "tree" / name)
    }
    sets = {
        row.id: row
        for name in ("train", "dev", "test", "test_other")
        for row in datadir.read(tmp_path / "sets" / name)
    }
    assert len(tree) == 1500
    assert {key: (row.text, row.speaker, row.audio) for key, row in tree.items()} == {
        key: (row.text, row.speaker, row.audio) for key, row in sets.items()
    }
    # utt2dur is in milliseconds
    assert all(abs(row.duration - sets[key].duration) < 1e-3 for key, row in tree.items())
