"""`asrtool pack`: one folder that can be moved, and knows whether it is whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import asrtool
from asrtool.bin import decode, export_llm, pack, recognize, train
from asrtool.errors import UserError
from asrtool.recognizer import Recognizer
from asrtool.trainer import records
from tests import toy_experiment as toys
from tests import toy_llm


@pytest.fixture(scope="module")
def packed(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed model, in a place where nothing of the experiment is near."""
    folder = tmp_path_factory.mktemp("packed")
    options = [
        "--config",
        str(toy / "decode.yaml"),
        "--out",
        str(folder / "model"),
        "--name",
        "Tones",
    ]
    pack.main([str(toy / "exp"), *options])
    return Path(shutil.move(folder / "model", tmp_path_factory.mktemp("elsewhere") / "moved"))


def test_a_packed_model_recognises_as_the_experiment_does(packed, toy, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", toys.sound("abc de"), toys.RATE)
    recognize.main([str(packed), str(tmp_path / "a.wav")])
    assert capsys.readouterr().out == "abc de\n"
    decode.main(
        [
            "--exp",
            str(packed),
            "--config",
            str(toy / "decode.yaml"),
            "--data",
            str(toy / "dump" / "test"),
        ]
        + ["--out", str(tmp_path / "out")]
    )
    assert (tmp_path / "out" / "text").read_text() == (toy / "data" / "test" / "text").read_text()


def test_the_folder_names_nothing_outside(packed, toy):
    names = {file.relative_to(packed).as_posix() for file in packed.rglob("*") if file.is_file()}
    assert {
        "README.md",
        "model.json",
        "config.yaml",
        "decode.yaml",
        "cmvn.json",
        "model.safetensors",
    } <= names
    assert "vocab/tokens.txt" in names
    for name in names - {"model.safetensors"}:
        assert str(toy) not in (packed / name).read_text()


def test_windows_are_as_long_as_those_of_the_experiment(packed, toy):
    assert asrtool.load(packed).windows == asrtool.load(toy / "exp").windows
    assert (packed / "lengths.json").read_text() == (
        toy / "exp" / "train" / "lengths.json"
    ).read_text()


def test_the_card_says_what_it_is_and_where_it_comes_from(packed):
    card = json.loads((packed / "model.json").read_text())
    assert card["name"] == "Tones" and card["parameters"] > 10_000
    assert card["origin"]["phase"] == "train" and card["origin"]["checkpoints"].startswith("step-")
    text = (packed / "README.md").read_text()
    assert card["sha256"] in text and "ctc_greedy" in text


def test_a_changed_file_is_noticed(packed, tmp_path):
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    with pytest.raises(
        UserError,
        match="model.safetensors is not what was packed: SHA-256 does not match",
    ):
        asrtool.load(copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match="is incomplete: model.safetensors is missing"):
        asrtool.load(copy)


def converted(file: Path) -> None:
    save_file({key: value.half() for key, value in load_file(file).items()}, file)


def record(file: Path) -> None:
    """As if the changed file had been written so."""
    records.note(file)


CHANGES = {  # of an experiment
    "permuted vocabulary": (
        lambda exp: swap(exp / "vocab" / "tokens.txt"),
        "vocab is not what the training began with",
    ),
    "vocabulary of the same size": (
        lambda exp: replace(exp / "vocab" / "tokens.txt", "\nb\n", "\nz\n"),
        "vocab is not what the training began with",
    ),
    "other means": (
        lambda exp: replace(exp / "cmvn.json", "1", "2"),
        "cmvn.json is not what the training began with",
    ),
    "no means": (lambda exp: (exp / "cmvn.json").unlink(), "is incomplete: cmvn.json is missing"),
    "other types": (
        lambda exp: [
            change(file)
            for file in exp.glob("train/average-*.safetensors")
            for change in (converted, record)
        ],
        r"tensors are of another type than float32, .*\(float16\)",
    ),
}


def swap(file: Path) -> None:
    lines = file.read_text().split("\n")
    lines[3], lines[4] = lines[4], lines[3]
    file.write_text("\n".join(lines))


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("what", CHANGES)
def test_an_experiment_that_was_changed_is_refused(toy, tmp_path, what):
    exp = Path(shutil.copytree(toy / "exp", tmp_path / "exp"))
    assert asrtool.load(exp)
    change, message = CHANGES[what]
    change(exp)
    with pytest.raises(ValueError, match=message):
        asrtool.load(exp)


def test_a_packed_model_without_its_means_is_refused_though_its_card_does_not_name_them(
    packed, tmp_path
):
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    (copy / "cmvn.json").unlink()
    card = json.loads((copy / "model.json").read_text())
    del card["files"]["cmvn.json"]
    (copy / "model.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="is incomplete: cmvn.json is missing"):
        asrtool.load(copy)


@pytest.mark.parametrize("what", ["there", "packed"])
def test_nothing_is_overwritten_and_nothing_packed_twice(packed, toy, tmp_path, what):
    source, out = (toy / "exp", packed) if what == "there" else (packed, tmp_path / "new")
    with pytest.raises(UserError, match="already exists|is a packed model already"):
        pack.main([str(source), "--out", str(out)])


def test_a_speech_llm_keeps_the_encoder_that_it_took_over(tmp_path):
    root, model = toy_llm.prepare(tmp_path), tmp_path / "model"
    encoder = tmp_path / "encoder.safetensors"
    train.main(toy_llm.arguments(root))
    export_llm.main([str(root / "exp"), "--out", str(tmp_path / "parts")])
    (tmp_path / "parts" / encoder.name).rename(encoder)
    changes = f"model.encoder_weights={encoder} model.encoder_tuning.mode=frozen"
    arguments = [*toy_llm.arguments(root), "--set", changes, "--exp", str(tmp_path / "taken")]
    train.main(arguments)
    trained = Recognizer.load(tmp_path / "taken").model.state_dict()
    pack.main([str(tmp_path / "taken"), "--out", str(model)])
    encoder.unlink()
    packed = Recognizer.load(model).model.state_dict()
    assert trained.keys() == packed.keys()
    assert all(torch.equal(value, packed[name]) for name, value in trained.items())
    assert str(tmp_path / "encoder") not in (model / "config.yaml").read_text()
