"""Stage 3 over real data types, a model of a few thousand parameters and features that spell the
text.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

import asrtool
from asrtool.bin.train import main
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.trainer import checkpoint
from tests.toy_corpus import CONFIG, arguments, write_corpus

PHASES = """
phases:
  first: {}
  second: {optim: {lr: 1e-12}, trainer: {epochs: 1}}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_corpus(root)
    (root / "phases.yaml").write_text(CONFIG + PHASES)
    return root


def train(data: Path, exp: Path, *options: str, config: str = "config.yaml") -> None:
    main(arguments(data, exp, *options, config=config))


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    exp = tmp_path_factory.mktemp("trained") / "exp"
    train(data, exp)
    return exp


def test_python_trains_with_the_same_function(data, copy):
    paths = {"train": data / "train", "valid": data / "valid", "vocab": data / "vocab"}
    before = sorted(copy.rglob("*.safetensors"))
    assert asrtool.train(str(data / "config.yaml"), exp=str(copy), **paths) == 0
    assert sorted(copy.rglob("*.safetensors")) == before  # finished: left alone
    with pytest.raises(UserError, match=r"optim.lr: 0.001 there, 0.002 now"):
        asrtool.train(data / "config.yaml", exp=copy, overrides=["optim.lr=2e-3"], **paths)


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "exp"))


def test_the_folder_holds_all_that_decoding_needs(trained):
    there = {path.name for path in trained.iterdir()}
    assert {
        "config.yaml",
        "vocab",
        "cmvn.json",
        "git.txt",
        "command.txt",
        "log.jsonl",
        "train",
    } <= there
    assert (trained / "train" / "average-1.safetensors").exists()


def test_the_size_of_the_model_is_noted(trained):
    facts = json.loads((trained / "train" / "model.json").read_text())
    weights = checkpoint.load(
        trained / "train" / json.loads((trained / "train" / "finished.json").read_text())["path"]
    )
    assert (
        facts["parameters"]
        == facts["trained"]
        == sum(tensor.numel() for tensor in weights.values())
    )
    assert facts["frame_shift"] == 0.04


def test_the_lengths_of_the_training_set_are_kept_and_added_to_a_finished_training(data, copy):
    seconds = [utterance.duration for utterance in datadir.read(data / "train")]
    written = (copy / "train" / "lengths.json").read_text()
    assert json.loads(written)["utterances"] == len(seconds)
    assert json.loads(written)["seconds"]["1"] == pytest.approx(max(seconds), abs=0.001)
    (copy / "train" / "lengths.json").unlink()
    train(data, copy)
    assert (copy / "train" / "lengths.json").read_text() == written


def test_utterances_that_are_not_trained_on_do_not_count_as_seen(data, tmp_path):
    limit = sorted(utterance.duration for utterance in datadir.read(data / "train"))[-3]
    train(data, tmp_path / "exp", "--set", f"trainer.epochs=1 data.max_seconds={limit}")
    kept = json.loads((tmp_path / "exp" / "train" / "lengths.json").read_text())["seconds"]
    assert kept["1"] == pytest.approx(limit, abs=0.001)


def test_word_and_character_error_rates_are_logged(trained):
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    valid = [record for record in records if record["event"] == "valid"]
    assert len(valid) == 2
    assert {"valid/loss", "valid/ctc", "valid/wer", "valid/cer"} <= set(valid[0])


def test_the_model_learns_to_spell(data, tmp_path):
    train(data, tmp_path / "exp", "--set", "trainer.epochs=40 optim.lr=1e-2")
    best = json.loads((tmp_path / "exp" / "train" / "best.json").read_text())
    assert best["value"] < 0.2


def test_a_finished_training_says_so_and_does_nothing(data, copy, capsys):
    log = (copy / "log.jsonl").read_bytes()
    train(data, copy)
    assert "is finished; its weights are" in capsys.readouterr().err
    assert (copy / "log.jsonl").read_bytes() == log


def test_another_config_is_refused_and_the_difference_is_printed(data, copy):
    with pytest.raises(UserError, match=r"(?s)optim.lr: 0.001 there, 0.002 now.*--force true"):
        train(data, copy, "--set", "optim.lr=2e-3")


def test_a_setting_that_changes_no_result_may_change(data, copy):
    train(data, copy, "--set", "trainer.log_every=7 trainer.save_every_seconds=5")


def test_other_data_are_refused(data, copy, tmp_path):
    other = Path(shutil.copytree(data, tmp_path / "other"))
    with open(other / "train" / "text", "a") as stream:
        stream.write("u999 abc\n")
    with pytest.raises(UserError, match="the content of --train"):
        train(other, copy)


def test_force_moves_the_other_training_aside(data, copy):
    train(data, copy, "--set", "trainer.epochs=1", "--force", "true")
    (aside,) = copy.parent.glob("exp.old-*")
    assert (aside / "train" / "finished.json").exists()
    assert len(checkpoint.every(copy / "train")) == 1


@pytest.mark.parametrize(
    "lost", [[".stage.json"], ["train/step-*"], [".stage.json", "train/step-*"]]
)
def test_weights_are_not_deleted_for_another_config_whatever_else_is_lost(data, copy, lost):
    for path in (path for pattern in lost for path in copy.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(
        UserError, match=r"(?s)holds a different training; differences:.*--force " r"true"
    ):
        train(data, copy, "--set", "optim.lr=2e-3")
    assert (copy / "train" / "average-1.safetensors").exists()


def test_a_training_whose_stamp_is_damaged_goes_on_with_the_same_config(data, copy):
    (copy / ".stage.json").write_bytes(b"\0" * 100)
    train(data, copy)
    assert json.loads((copy / ".stage.json").read_text())["phases"]


def damage(file: Path) -> bytes:
    """Change a weight; gives what the file was."""
    content = file.read_bytes()
    file.write_bytes(content[:-4] + bytes(4))
    return content


def test_a_finished_training_makes_a_damaged_average_anew(data, copy, capsys):
    average = copy / "train" / "average-1.safetensors"
    content = damage(average)
    train(data, copy)
    assert average.read_bytes() == content
    assert (
        f"{average} is computed again: average-1.safetensors is not what was written"
        in capsys.readouterr().err
    )


def test_a_phase_does_not_start_from_a_damaged_average(data, tmp_path):
    exp = tmp_path / "exp"
    train(data, exp, config="phases.yaml")
    content = damage(exp / "first" / "average-1.safetensors")
    expected = (exp / "second" / "average-1.safetensors").read_bytes()
    shutil.rmtree(exp / "second")
    train(data, exp, config="phases.yaml")
    assert (exp / "first" / "average-1.safetensors").read_bytes() == content
    assert (exp / "second" / "average-1.safetensors").read_bytes() == expected


def test_a_warm_start_from_a_damaged_average_is_refused(data, copy, tmp_path):
    weights = copy / "train" / "average-1.safetensors"
    damage(weights)
    with pytest.raises(
        UserError,
        match=f"--init {weights} cannot be used: .*SHA-256 does not match",
    ):
        train(data, tmp_path / "other", "--init", str(weights))
    assert not (tmp_path / "other").exists()


def test_a_phase_starts_from_the_averaged_weights_of_the_one_before(data, tmp_path):
    exp = tmp_path / "exp"
    train(data, exp, config="phases.yaml")
    first, second = (
        checkpoint.load(exp / name / "average-1.safetensors") for name in ("first", "second")
    )
    # the second phase's rate is too small to move a float32
    assert all(abs(first[name] - second[name]).max() < 1e-6 for name in first)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "optim.groups={encodr.*: {freeze: true}}",
            r"'encodr\.\*' matches no parameter; did you " r"mean 'encoder\.\*'",
        ),
        ("optim.groups={'*': {freeze: true}}", "nothing is left to train"),
        (
            "model.encoder.dim=24",
            "the result of phase 'first' does not fit the model: of a different shape",
        ),
        ("model.encoder.num_layers=2", "not in the file: encoder.layers.1"),
        ("trainer.best=valid/attention", "'valid/attention' is not measured"),
        ("data.features=online phases.second.data.augment.noise={set: musan}", "musan"),
    ],
)
def test_what_would_stop_a_later_phase_stops_before_the_first(data, tmp_path, override, sentence):
    changes = [shlex.quote(f"phases.second.{part}") for part in override.split(" phases.second.")]
    with pytest.raises(UserError, match=f"phase 'second': .*{sentence}"):
        train(data, tmp_path / "exp", "--set", " ".join(changes), config="phases.yaml")
    assert not (tmp_path / "exp" / "first").exists()


def test_a_warm_start_that_does_not_fit_names_the_tensors(data, trained, tmp_path):
    options = (
        "--init",
        str(trained / "train" / "average-1.safetensors"),
        "--set",
        "model.encoder.dim=24",
    )
    with pytest.raises(UserError, match="of a different shape: .*expected"):
        train(data, tmp_path / "exp", *options)


def test_a_warm_start_from_a_trained_model_takes_its_averaged_weights(
    data, trained, tmp_path, capsys
):
    train(data, tmp_path / "exp", "--init", str(trained), "--set", "trainer.epochs=1")
    weights = trained / "train" / "average-1.safetensors"
    assert f"starts from the weights {weights} with a fresh" in capsys.readouterr().err


def test_a_warm_start_takes_over_the_weights_and_says_that_it_is_no_resume(
    data, trained, tmp_path, capsys
):
    weights = trained / "train" / "average-1.safetensors"
    train(
        data, tmp_path / "exp", "--init", str(weights), "--set", "optim.lr=1e-12 trainer.epochs=1"
    )
    assert (
        f"starts from the weights {weights} with a fresh optimizer and step 1"
        in capsys.readouterr().err
    )
    old, new = (
        checkpoint.load(weights),
        checkpoint.load(tmp_path / "exp" / "train" / "average-1.safetensors"),
    )
    assert all(abs(old[name] - new[name]).max() < 1e-6 for name in old)


def test_the_global_batch_is_said(data, tmp_path, capsys):
    train(data, tmp_path / "exp", "--set", "trainer.epochs=1 data.batch.max_seconds_per_device=2")
    said = capsys.readouterr().err
    assert re.search(
        r"global batch: [\d.]+ utterances, [\d.]+ seconds on average, at most 4 with " r"padding",
        said,
    )
    assert re.search(r"\d+ steps per epoch; 1 rank with (\d to )?[23] micro-batches each", said)


def test_what_ctc_cannot_align_is_named_before_the_first_step(data, tmp_path, capsys):
    crowded = Path(shutil.copytree(data, tmp_path / "crowded"))
    lines = (crowded / "train" / "text").read_text().splitlines()
    lines[7] = "u007 " + "a" * 40
    (crowded / "train" / "text").write_text("\n".join(lines) + "\n")
    train(crowded, tmp_path / "exp", "--set", "trainer.epochs=1")
    said = capsys.readouterr().err
    assert "before the first step: 1 utterance without a finite loss" in said
    assert said.index("u007") < said.index(
        "train step" if "train step" in said else "the best so far"
    )
    records = [
        json.loads(line) for line in (tmp_path / "exp" / "log.jsonl").read_text().splitlines()
    ]
    assert records[0] | {"time": 0} == {
        "time": 0,
        "event": "skipped",
        "phase": "train",
        "epoch": 0,
        "ids": ["u007"],
    }


def test_micro_batches_may_be_made_smaller_between_two_starts(data, copy):
    train(data, copy, "--set", "data.batch.max_seconds_per_device=2 trainer.parallel=fsdp")


def test_two_views_are_compared_in_training_and_not_in_validation(data, tmp_path):
    changes = [
        "losses.consistency={type: consistency, weight: 0.2, warmup: 2}",
        "trainer.log_every=1",
    ]
    changes += ["trainer.epochs=2", "data.augment.spec_augment={}"]
    train(data, tmp_path / "exp", "--set", shlex.join(changes))
    events = [json.loads(line) for line in (tmp_path / "exp/log.jsonl").read_text().splitlines()]
    trained = [event for event in events if "consistency" in event]
    assert trained and all(event["consistency"] > 0 for event in trained)
    valid = [event for event in events if "valid/loss" in event]
    assert valid and not any("valid/consistency" in event for event in valid)
