"""The studies of egs/librispeech: systems that can be built, tables; (slow) one end to end."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from asrtool.experiment import load_phases, split_overrides
from asrtool.model_folder import build_model
from asrtool.trainer.optim import assign
from tests.recipes.conftest import ROOT, run_in
from tests.recipes.fake_recipe import noted
from tests.recipes.models import on_meta

RECIPE = ROOT / "egs" / "librispeech"
STUDIES = sorted(path.name for path in (RECIPE / "studies").glob("echo_*.sh"))
SYSTEMS = {
    "echo_windows.sh": 12,
    "echo_losses.sh": 9,
    "echo_backbones.sh": 12,
    "echo_splits.sh": 10,
}

CORPUS = ("--corpus", "there", "--train-set", "train_1h")


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    """The studies beside a run.sh that writes down how it was called, and a python that computes
    and does no more.
    """
    recipe = tmp_path / "egs" / "librispeech"
    shutil.copytree(RECIPE / "studies", recipe / "studies")
    shutil.copytree(ROOT / "utils", tmp_path / "utils")
    (tmp_path / "utils/path.sh").write_text(f"PATH={tmp_path}/bin:$PATH\n")
    (tmp_path / "bin").mkdir()
    fakes = {
        tmp_path / "bin/python": f'[[ $1 != -c ]] || exec {sys.executable} "$@"',
        recipe / "run.sh": noted("calls"),
    }
    for path, body in fakes.items():
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    return recipe


def calls(stage: Path, study: str, *options: str) -> list[dict[str, str]]:
    """The options of every call of run.sh; the study is called two folders above its recipe."""
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run(
        ["bash", str(stage / "studies" / study), *options],
        check=True,
        capture_output=True,
        env=environment,
        cwd=stage.parents[1],
    )
    lines = [shlex.split(line) for line in (stage / "calls").read_text().splitlines()]
    return [dict(zip(line[::2], line[1::2], strict=True)) for line in lines]


@pytest.mark.parametrize("options", [(), CORPUS], ids=["miniature", "corpus"])
@pytest.mark.parametrize("study", STUDIES)
def test_every_system_of_a_study_can_be_built(stage, study, options):
    found = calls(stage, study, "--seeds", "4 7", *options)
    assert len({call["--tag"] for call in found}) == len(found) == 2 * SYSTEMS[study]
    for call in found[::2]:
        phases = load_phases(
            RECIPE / call["--train-config"], split_overrides([call["--train-args"]])
        )
        for phase in phases.values():
            assert phase.seed == 4
            on_meta(phase, 30)


SPLITS = {"10min": "10m", "1h": "1h", "10h": "10h", "100": "100h", "460": "960h"}


@pytest.mark.parametrize("split", SPLITS)
def test_a_corpus_is_studied_with_the_pretrained_encoder_of_its_training_set(stage, split):
    for study in ("echo_windows.sh", "echo_losses.sh"):
        (stage / "calls").unlink(missing_ok=True)
        for call in calls(stage, study, "--seeds", "0", *CORPUS[:3], f"train_{split}"):
            expected = f"conf/echotune/train_echotune_{SPLITS[split]}.yaml"
            assert call["--train-config"] == expected


def test_any_config_with_echo_is_studied_from_wherever_its_path_is_typed(stage, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        f"extends: {RECIPE}/conf/echotune/train_echotune_10h.yaml\n"
        "model: {encoder: {attention: {gate_bias: 1.0}}}\n"
    )
    found = calls(stage, "echo_windows.sh", "--seeds", "0", "--train-config", "own.yaml")
    assert len(found) == SYSTEMS["echo_windows.sh"]
    for call in found:
        assert call["--train-config"] == str(own)
        phase = load_phases(own, split_overrides([call["--train-args"]]))["train"]
        with torch.device("meta"):
            model = build_model(phase, 30)
        assign(phase.optim, model)  # every pattern of the groups fits, or need not
        attention = phase.model.encoder.attention
        assert (attention is None) == (call["--tag"] == "plain-s0")
        assert attention is None or attention.gate_bias == 1.0


def test_losses_are_compared_on_a_skewed_half_and_an_even_one(stage):
    whole, *found = calls(stage, "echo_losses.sh", "--seeds", "0", "--subset", "skewed", *CORPUS)
    assert whole["--stop-stage"] == "0" and whole["--train-set"] == "train_1h"
    count = SYSTEMS["echo_losses.sh"]
    assert [call["--train-set"] for call in found] == (
        ["train_1h_skewed"] * count + ["train_1h_even"] * count
    )
    assert len({call["--tag"] for call in found}) == len(found)
    assert {call["--stage"] for call in found} == {"1"}


def test_the_skewed_half_has_the_fewest_rare_letters(tmp_path, monkeypatch, capsys):
    data = tmp_path / "train"
    data.mkdir()
    texts = ["AE ZE", "AEAE", "QUA", "EAAE E", "EA", "AE QE", "AAA", "EEE"]
    ids = [f"u{number}" for number in range(len(texts))]
    for name, values in {
        "text": texts,
        "utt2spk": ids,
        "utt2dur": ["1.0"] * len(ids),
        "wav.scp": [f"{key}.wav" for key in ids],
    }.items():
        lines = [f"{key} {value}\n" for key, value in zip(ids, values, strict=True)]
        (data / name).write_text("".join(lines))
    monkeypatch.setattr(sys, "argv", ["skewed_subset", "--data", str(data), "--rare", "0.2"])
    runpy.run_path(str(RECIPE / "studies/skewed_subset.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert "Rare letters: Q U Z" in said and "| train_skewed | 4 | 0.00 | 0.00 |" in said
    chosen = (tmp_path / "train_skewed/text").read_text().splitlines()
    assert [line.split()[0] for line in chosen] == ["u1", "u3", "u4", "u6"]
    order = sorted(ids, key=lambda key: hashlib.sha256(key.encode()).hexdigest())[:4]
    even = (tmp_path / "train_even/text").read_text().splitlines()
    assert [line.split()[0] for line in even] == sorted(order)


def test_plain_data2vec_of_every_split_is_echotune_without_its_parts(stage):
    found = {
        call["--tag"]: call for call in calls(stage, "echo_splits.sh", "--seeds", "0", *CORPUS[:2])
    }
    sets = {"10m": "train_10min", "1h": "train_1h", "10h": "train_10h", "100h": "train_100"}
    for split, train_set in {**sets, "960h": "train"}.items():
        plain, echo = (found[f"{system}_{split}-s0"] for system in ("plain", "echo"))
        assert plain["--train-set"] == echo["--train-set"] == train_set
        one, other = (
            load_phases(RECIPE / call["--train-config"], split_overrides([call["--train-args"]]))
            for call in (plain, echo)
        )
        one, other = one["train"], other["train"]
        assert one.model.encoder.attention is None and other.model.encoder.attention is not None
        assert one.losses["ctc"].weight == 1 and one.losses["focal"].weight == 0
        assert one.losses["ctc"].class_weights == "none"
        without = dataclasses.replace(other.model.encoder, attention=None)
        assert one.model.encoder == without and one.trainer == other.trainer
        assert one.data == other.data
        kept = {key: group for key, group in other.optim.groups.items() if "encoder.model" in key}
        assert one.optim == dataclasses.replace(other.optim, groups=kept)


def test_one_split_and_one_system_are_one_training(stage):
    options = ("--splits", "10h", "--systems", "plain", "--seeds", "3")
    (call,) = calls(stage, "echo_splits.sh", *CORPUS[:2], *options)
    assert call["--tag"] == "plain_10h-s3" and call["--train-set"] == "train_10h"
    for wrong in (("--splits", "5h"), ("--systems", "none")):
        with pytest.raises(subprocess.CalledProcessError):
            calls(stage, "echo_splits.sh", *wrong)


def test_systems_that_must_be_equally_large_are(stage):
    sizes = {}
    for call in calls(stage, "echo_windows.sh", "--seeds", "0"):
        phase = load_phases(
            RECIPE / call["--train-config"], split_overrides([call["--train-args"]])
        )["train"]
        with torch.device("meta"):
            sizes[call["--tag"]] = sum(
                parameter.numel() for parameter in build_model(phase, 30).parameters()
            )
    assert sizes["plain-s0"] == pytest.approx(sizes["adaptive16-s0"], rel=2e-3)


def write_score(folder: Path, rate: float) -> None:
    folder.mkdir(parents=True)
    (folder / "score.json").write_text(json.dumps({"total": {"rate": rate}}))


def table(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["table", *map(str, arguments)])
    runpy.run_path(str(RECIPE / "studies/table.py"), run_name="__main__")


def test_a_table_has_relative_changes_with_intervals_and_the_gap_between_dev_and_test(
    tmp_path, monkeypatch, capsys
):
    rates = {
        "a": [(0.10, 0.12), (0.10, 0.13), (0.10, 0.14)],
        "b": [(0.05, 0.06), (0.05, 0.065), (0.05, 0.07)],
    }
    for tag, seeds in rates.items():
        for seed, pair in enumerate(seeds):
            for name, rate in zip(("dev", "test"), pair, strict=True):
                write_score(tmp_path / f"{tag}-s{seed}/greedy/{name}", rate)
    options = ("--exp", tmp_path, "--sets", "dev test", "--against", "A", "A={a}", "B={b}")
    table(monkeypatch, "--seeds", "0 1 2", *options)
    rows = capsys.readouterr().out.splitlines()
    # 3 points more on test with a deviation of 1: 3 +- 4.303 / sqrt(3)
    assert rows[2].startswith(
        "| A | 10.00 (10.00 to 10.00) |  | 13.00 (10.52 to 15.48) |  | +3.00 (+0.52 to +5.48) |"
    )
    assert "| B | 5.00 (5.00 to 5.00) | -50.0 (-50.0 to -50.0) |" in rows[3]
    table(monkeypatch, "--seeds", "1", *options)
    assert "| B | 5.00 | -50.0 | 6.50 | -50.0 | +1.50 |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_study_runs_from_end_to_end_at_its_tiniest(tree):
    pytest.importorskip(
        "espeakng_loader", reason="the miniature needs espeak-ng: pip install -e '.[mini]'"
    )
    options = '--size tiny --seeds "0" --train-args "trainer.epochs=1"'
    run_in(tree, f"bash egs/librispeech/studies/echo_losses.sh {options}")
    found = (tree / "egs/librispeech/exp/mini_tiny/echo_losses.md").read_text()
    assert "| CTC |" in found and "| class weights 0.9, focal 0.1 |" in found
