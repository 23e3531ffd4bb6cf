"""Existing data directories in a recipe without data preparation: stages 0 to 2, faulty sets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.bin import data as command
from asrtool.bin import extract_features, make_vocab
from asrtool.data import prepared
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from tests.recipes.fake_recipe import MINI, ROOT, Recipe

RATE = 16000
SENTENCES = {
    "train": ["A B", "B A C", "C"],
    "held": ["A"],
    "test_a": ["B"],
    "test_b": ["C A"],
    "noise": [""],
}
RECIPE = """\
#!/usr/bin/env bash
# A recipe without a data preparation
set -euo pipefail
cd "$(dirname "$0")"
root={root}
recipe=mine
corpus=
train_set=train             # training set
valid_set=dev               # validation set
test_sets=test              # sets to decode and score
unit=char                   # what the model writes
vocab_size=0                # units
metric=wer
normalize=none
group_by=none
train_config=train.yaml     # training config
decode_config=decode.yaml   # decoding config
. $root/utils/stages.sh
"""
TRAIN = """\
data: {batch: {seconds: 20}, fbank: {num_mel_bins: 24}}
model: {type: hybrid, encoder: {type: conformer, num_layers: 1, dim: 16, num_heads: 2, ffn_dim: 32}}
losses: {ctc: {type: ctc, weight: 1.0}}
optim: {lr: 1e-3}
trainer: {epochs: 1}
"""


def ready(root: Path) -> Path:
    """`root`/s5/data/<set> of another toolkit's recipe: relative paths start at s5; train has
    segments to the end.
    """
    for name, texts in SENTENCES.items():
        folder = root / "s5" / "data" / name
        (root / "s5" / "audio").mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True)
        scp, segments, text = "", "", ""
        for number, said in enumerate(texts):
            key = f"{name}-{number}"
            samples = np.random.default_rng(number).normal(0, 0.1, RATE + 4000 * number)
            soundfile.write(root / "s5" / "audio" / f"{key}.wav", samples, RATE)
            scp += (
                f"{key} audio/{key}.wav\n"
                if number != 1
                else f"{key} cat {root}/s5/audio/{key}.wav |\n"
            )
            segments += f"{key}-a {key} 0.5 -1\n"
            text += f"{key}{'-a' if name == 'train' else ''} {said}\n"
        (folder / "wav.scp").write_text(scp)
        (folder / "text").write_text(text)
        if name == "train":
            (folder / "segments").write_text(segments)
            (folder / "feats.scp").write_text(
                "".join(f"{line.split()[0]} old.ark:5\n" for line in text.splitlines())
            )
    return root / "s5" / "data"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The folder of a recipe that has no local/prepare_data.py."""
    folder = tmp_path / "egs" / "mine"
    folder.mkdir(parents=True)
    files = {
        "run.sh": RECIPE.format(root=ROOT),
        "train.yaml": TRAIN,
        "decode.yaml": "searcher: {type: ctc_greedy}\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def run(recipe: Path, *options: str) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "run.sh", *options], cwd=recipe, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def is_finished(recipe: Path) -> None:
    assert (recipe / "data" / "test_sets").read_text() == "test_a test_b\n"
    tokens = (recipe / "data" / "vocab_char" / "tokens.txt").read_text().split()
    assert tokens == ["<blank>", "<unk>", "<space>", "A", "B", "C", "<sos/eos>"]
    rows = datadir.read(recipe / "dump" / "fbank24" / "train")
    assert [row.duration for row in rows] == [0.5, 0.75, 1.0] and all(
        row.num_frames for row in rows
    )


def test_stage_0_of_a_recipe_takes_them_and_the_next_ones_go_on(
    tmp_path: Path, recipe: Path, monkeypatch
) -> None:
    run(recipe, "--data-dirs", str(ready(tmp_path)), "--valid-set", "held", "--stop-stage", "0")
    assert not (recipe / "data" / "noise").exists()
    monkeypatch.chdir(recipe)
    for name in ("train", "held", "test_a", "test_b"):
        arguments = [
            "--config",
            "train.yaml",
            "--data",
            f"data/{name}",
            "--out",
            f"dump/fbank24/{name}",
        ]
        extract_features.main(arguments)
    make_vocab.main(["--text", "data/train/text", "--unit", "char", "--out", "data/vocab_char"])
    is_finished(recipe)


@pytest.mark.slow
def test_stages_0_to_2_of_a_recipe_take_them(tmp_path: Path, recipe: Path) -> None:
    options = [
        "--data-dirs",
        str(ready(tmp_path)),
        "--valid-set",
        "held",
        "--stop-stage",
        "2",
        "--nj",
        "1",
    ]
    run(recipe, *options)
    is_finished(recipe)
    run(recipe, *options)


@pytest.fixture
def engine(tmp_path: Path) -> Recipe:
    return Recipe(tmp_path, MINI)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return ready(tmp_path)


def test_what_they_lack_is_made_and_their_features_are_not_taken(
    folder: Path, tmp_path: Path
) -> None:
    command.main(
        ["import", "--valid-set", "held", "--extra-sets", "noise musan", str(folder), "data"]
    )
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "train",
        "held",
        "test_a",
        "test_b",
        "noise",
        "test_sets",
    }
    assert not any(datadir.check(path.parent)[1:] for path in (tmp_path / "data").glob("*/wav.scp"))
    for row in datadir.read(tmp_path / "data" / "train", measure=False):
        assert row.duration >= 0.5 and row.features is None and row.speaker == row.id
        assert row.audio.startswith(("cat ", str(tmp_path / "s5" / "audio")))


def test_they_are_made_again_only_where_something_changed(
    folder: Path, tmp_path: Path, capsys
) -> None:
    arguments = ["import", "--valid-set", "held", str(folder), "data"]
    command.main(arguments)
    capsys.readouterr()
    (folder / "held" / "text").write_text("held-0 B\n")
    command.main(arguments)
    said = capsys.readouterr().err
    assert (
        said.count("is up to date") == 3 and datadir.read(tmp_path / "data" / "held")[0].text == "B"
    )


def test_directories_that_lie_in_the_recipe_stay_there(
    folder: Path, tmp_path: Path, capsys
) -> None:
    shutil.copytree(folder, tmp_path / "data")
    command.main(["import", "--valid-set", "held", "data", "data"])
    assert "data/train: the data directory is up to date" in capsys.readouterr().err
    assert (tmp_path / "data" / "train" / "segments").read_bytes() == (
        folder / "train" / "segments"
    ).read_bytes()
    assert (tmp_path / "data" / "test_sets").read_text() == "test_a test_b\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"valid_set": "dev"},
            "no data directory dev; found: held, noise, test_a, test_b, train; choose others",
        ),
        ({"valid_set": "held", "test_sets": ["test_c"]}, "there is no data directory test_c"),
        ({"train_set": "../s5", "valid_set": "held"}, "there is no data directory ../s5"),
    ],
)
def test_a_set_that_is_not_there_is_named(
    folder: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prepared.take(folder, tmp_path / "data", **{"train_set": "train", **options})
    assert not (tmp_path / "data").exists()


def test_a_folder_that_is_one_data_directory_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="there is no data directory train, dev; found: no <set>/wav.scp in it"
    ):
        prepared.take(folder / "train", tmp_path / "data", "train", "dev")


def test_a_fault_is_reported_with_its_line_and_nothing_is_made(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "test_b" / "text").write_text("other C A\n")
    with pytest.raises(UserError, match=r"test_b/text.*asrtool check_data .*test_b"):
        prepared.take(folder, tmp_path / "data", "train", "held")
    assert not list((tmp_path / "data").glob("*"))


# -- the recipe engine ------------------------------------------------------


def test_ready_data_directories_take_the_place_of_a_corpus(engine: Recipe, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "mine").mkdir(parents=True)
    (engine.folder / "downloads" / "corpus").rmdir()
    done = engine.run("--stop-stage", "0", "--data-dirs", "mine", at=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    assert [" ".join(call) for call in engine.calls()] == [
        "python -m asrtool.bin.data import --train-set train --valid-set dev "
        f"{tmp_path}/elsewhere/mine data",
        "python -m asrtool.bin.check_data data/train data/dev data/test data/other",
    ]
    engine.calls_file.unlink()
    engine.run(
        "--stop-stage",
        "0",
        "--data-dirs",
        str(tmp_path),
        "--test-sets",
        "a b",
        "--extra-sets",
        "musan",
    )
    assert " ".join(engine.calls()[0][4:-2]) == (
        "--train-set train --valid-set dev --test-sets a b --extra-sets musan"
    )


def test_missing_data_directories_are_one_sentence(engine: Recipe) -> None:
    done = engine.run("--data-dirs", "mine")
    assert (done.returncode, engine.calls()) == (1, [])
    assert "no folder with data directories at 'mine' (looked in " in done.stderr


@pytest.mark.parametrize(
    "script", sorted((ROOT / "egs").glob("*/run*.sh")), ids=lambda path: path.parent.name
)
def test_every_recipe_takes_ready_data_directories(script: Path, tmp_path: Path) -> None:
    sets = "--train-set a --valid-set b --test-sets c"
    command = [script, "--data-dirs", tmp_path, *sets.split(), "--stop-stage", "0", "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"asrtool.bin.data import {sets}" in done.stdout
    assert "prepare_data.py" not in done.stdout
    said = subprocess.run([script, "--help"], capture_output=True, text=True).stdout
    assert all(
        f"--{option} " in said for option in ("data-dirs", "train-set", "valid-set", "test-sets")
    )
