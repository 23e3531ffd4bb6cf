"""Stage 0 of all corpora: official trees, faulty trees, a second run, any locale and file order."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asrtool.data import corpus
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from tests.recipes.preparation import ROOT, content, prepare
from tests.recipes.trees import TREES, Tree, silence


@pytest.fixture(params=TREES)
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Tree:
    return TREES[request.param](tmp_path / "corpus")


def run(tree: Tree, out: Path) -> None:
    prepare(tree.recipe, tree.folder, out, *tree.options)


def data(out: Path) -> dict[str, bytes]:
    """What was written, without the stamps, which know the inputs' bytes."""
    return {name: value for name, value in content(out).items() if not name.endswith(".stage.json")}


def test_the_sets_are_valid_and_hold_every_utterance(tree: Tree, tmp_path: Path) -> None:
    run(tree, tmp_path / "out")
    tests = (tmp_path / "out" / "test_sets").read_text().split()
    assert {"train", "dev", *tests} == tree.counts.keys()
    for name, count in tree.counts.items():
        assert len(datadir.read(tmp_path / "out" / name)) == count
        problems = datadir.check(tmp_path / "out" / name)
        assert [problem for problem in problems if problem.kind != "note"] == []


def test_twice_gives_the_same_bytes_whatever_the_order_of_the_files(
    tree: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    run(tree, tmp_path / "out")
    before = content(tmp_path / "out")
    run(tree, tmp_path / "out")
    assert content(tmp_path / "out") == before
    shutil.rmtree(tmp_path / "out")
    for name in ("listdir", "scandir"):
        monkeypatch.setattr(os, name, backwards(getattr(os, name)))
    run(tree, tmp_path / "out")
    assert content(tmp_path / "out") == before


def backwards(listing: Callable) -> Callable:
    class Entries(list):
        def __enter__(self) -> Entries:
            return self

        def __exit__(self, *_: object) -> None: ...

        def close(self) -> None: ...

    def listed(path: object = ".") -> Entries:
        return Entries(
            sorted(listing(path), key=lambda entry: getattr(entry, "name", entry), reverse=True)
        )

    return listed


def test_the_locale_does_not_matter(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.recipes.preparation import prepare\n"
        "from tests.recipes.trees import TREES\n"
        "for name, make in TREES.items():\n"
        "    tree = make(Path(sys.argv[1], name))\n"
        "    prepare(tree.recipe, tree.folder, Path(sys.argv[2], name), *tree.options)\n"
    )
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "PYTHONCOERCECLOCALE": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", script, str(tmp_path / "corpus"), str(tmp_path / "plain")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, make in TREES.items():
        tree = make(tmp_path / "corpus" / name)
        run(tree, tmp_path / "out" / name)
    assert data(tmp_path / "out") == data(tmp_path / "plain")


# -- wrong trees ------------------------------------------------------------------


def test_crlf_byte_order_marks_and_blank_lines_make_no_difference(
    tree: Tree, tmp_path: Path
) -> None:
    run(tree, tmp_path / "a")
    for path in tree.texts:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    run(tree, tmp_path / "b")
    assert data(tmp_path / "a") == data(tmp_path / "b")


def without_transcript(tree: Tree) -> list[str]:
    tree.transcript.unlink()
    return [str(tree.transcript)]


def renamed(tree: Tree) -> list[str]:
    other = tree.renamed.with_name(f"my_{tree.renamed.name}")
    tree.renamed.rename(other)
    return [tree.renamed.name, other.name]


def half_unpacked(tree: Tree) -> list[str]:
    lost = tree.audio[len(tree.audio) // 3 :]
    for path in lost:
        path.unlink()
    return [lost[0].stem, "unpack"]


def cut_off(tree: Tree) -> list[str]:
    """As a full disk or an interrupted tar leaves files."""
    if tree.recipe == "librispeech":
        pytest.skip("a cut FLAC file has a whole header; stage 1 finds it")
    cut = tree.audio[len(tree.audio) // 3 :]
    for path in cut:
        path.write_bytes(path.read_bytes()[:1000])
    return [cut[0].name, "truncated", "unpack"]


def twice(tree: Tree) -> list[str]:
    lines = tree.transcript.read_text(encoding="utf-8").splitlines()
    first = 1 if lines[0].startswith("UtteranceID") else 0
    tree.write(tree.transcript, [*lines, lines[first]])
    return [f"{tree.transcript}:{len(lines) + 1}", "remove one"]


def in_another_encoding(tree: Tree) -> list[str]:
    text = tree.transcript.read_text(encoding="utf-8").replace("WORDS", "CAFÉ")
    tree.transcript.write_bytes(text.encode("gb18030"))
    return [str(tree.transcript), "expected UTF-8"]


def empty(tree: Tree) -> list[str]:
    tree.transcript.write_bytes(b"")
    return [str(tree.transcript), "expected"]


DAMAGES = [without_transcript, renamed, half_unpacked, cut_off, twice, in_another_encoding, empty]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_tree_is_one_sentence_that_names_the_file_and_nothing_is_written(
    tree: Tree, tmp_path: Path, damage: Callable[[Tree], list[str]]
) -> None:
    expected = damage(tree)
    with pytest.raises(UserError) as error:
        run(tree, tmp_path / "out")
    assert all(part in str(error.value) for part in expected), str(error.value)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").glob("*"))


def test_an_error_in_the_last_set_leaves_nothing_of_the_others(tree: Tree, tmp_path: Path) -> None:
    tests = [path for path in tree.texts if "test" in str(path.relative_to(tree.folder)).lower()]
    path = next(
        (
            path
            for path in tests
            if path.name in ("trans.txt", "text", "TRANS.txt") or "-7." in path.name
        ),
        None,
    )
    if path is None:
        pytest.skip("one transcript for all sets, or one for each recording")
    lines = path.read_text(encoding="utf-8").splitlines()
    tree.write(path, [*lines, lines[-1]])
    with pytest.raises(UserError, match="remove one"):
        run(tree, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_a_text_whose_audio_is_missing_is_left_out_and_named(tree: Tree, tmp_path: Path) -> None:
    lost = tree.audio[0]
    lost.unlink()
    run(tree, tmp_path / "out")
    sentence = (tmp_path / "out" / "train" / corpus.SKIPPED).read_text().splitlines()[0]
    assert sentence.startswith(lost.stem)
    assert str(tree.transcript) in sentence or str(lost) in sentence
    lost_too = tree.counts["train"] // len(tree.audio)  # a recording of dialogue holds several
    assert len(datadir.read(tmp_path / "out" / "train")) == tree.counts["train"] - lost_too


def test_a_recording_of_no_samples_is_left_out_and_named(tmp_path: Path) -> None:
    tree = TREES["aishell1"](tmp_path / "corpus")
    tree.audio[0].write_bytes(silence(0))
    run(tree, tmp_path / "out")
    assert "holds no samples" in (tmp_path / "out" / "train" / corpus.SKIPPED).read_text()
