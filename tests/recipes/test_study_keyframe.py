"""The commands of the study of key frames: all configs that it names or writes are valid.

Nothing is trained: run.sh only records its arguments.
"""

from __future__ import annotations

import os
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from asrtool.experiment import load_decode, load_phases, split_overrides
from tests import warm_python
from tests.recipes.conftest import ROOT
from tests.recipes.fake_recipe import noted
from tests.recipes.models import on_meta

STUDIES = ROOT / "egs" / "aishell1" / "studies"
VARIANTS = "baseline axe til early nofusion radius2 concat skip2 skip5 causal keep5 unsupervised"


def calls(folder: Path, recipe: str, corpus: bool = False) -> list[dict[str, str]]:
    """The options of every call of run.sh, of which the study's own config writer is real."""
    for part in (f"egs/{recipe}/conf", "egs/aishell1/studies", "utils"):
        if not (folder / part).exists():
            shutil.copytree(ROOT / part, folder / part)
    fakes = {
        folder / "fake/python": f'[[ $1 != *_variants.py ]] || exec {warm_python.python()} "$@"',
        folder / "egs" / recipe / "run.sh": noted("calls")
        + 'while [[ $# -gt 0 ]]; do [[ $1 != --tag ]] || mkdir -p "exp$VARIANT/$2"; shift; done',
    }
    for path, body in fakes.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    (folder / "utils/path.sh").write_text(f'export PATH="{folder}/fake:$PATH"\n')
    options = ("--seeds", "3", "--epochs", "1", "--variants", VARIANTS)
    if corpus:  # the command of the documentation, from another folder
        (folder / "speech").mkdir()
        config = ("--config", "conf/keyframe/train_keyframe.yaml", "--layer", "6", "--ngpu", "4")
        options += ("--corpus", "speech", *config)
    else:
        options += ("--mini-size", "tiny")
    done = subprocess.run(
        ["bash", str(folder / "egs/aishell1/studies/keyframe.sh"), "--recipe", recipe, *options],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "VARIANT": "" if corpus else "/mini_tiny",
        },
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = (folder / "egs" / recipe / "calls").read_text().splitlines()
    return [dict(zip(*2 * [iter(shlex.split(line))], strict=True)) for line in lines]


@pytest.mark.parametrize(
    ("recipe", "corpus"), [("aishell1", False), ("librispeech", False), ("aishell1", True)]
)
def test_every_variant_of_the_study_can_be_built_and_decoded(recipe, corpus, tmp_path):
    trained = set()
    for call in calls(tmp_path, recipe, corpus):
        folder = tmp_path / "egs" / recipe
        assert call.get("--corpus") == (str(tmp_path / "speech") if corpus else None)
        if call["--stage"] == "3":
            changes = split_overrides([call["--train-args"]])
            for phase in load_phases(folder / call["--train-config"], changes).values():
                assert phase.seed == 3 and phase.trainer.epochs == 1
                on_meta(phase, 50)
            trained.add(call["--tag"])
        elif call["--stage"] == "4":
            changes = split_overrides([call.get("--decode-args", "")])
            load_decode(folder / call["--decode-config"], changes)
            assert call["--tag"] in trained
    assert trained == {f"study_{name}_3" for name in VARIANTS.split()}


@pytest.mark.parametrize("recipe", ["aishell1", "aishell2", "librispeech"])
def test_the_baseline_of_key_frames_is_that_of_the_recipe(recipe):
    """At full size; where the epochs of the phases are not added up."""
    conf = ROOT / "egs" / recipe / "conf"
    plain = load_phases(conf / "train_conformer.yaml")
    variants = runpy.run_path(str(STUDIES / "keyframe_variants.py"))["variants"]
    frames = load_phases(conf / "keyframe" / "train_keyframe.yaml")
    assert variants(frames, plain["train"].trainer.epochs)["baseline"] == plain
    assert variants(frames)["baseline"]["train"].trainer.epochs == sum(
        phase.trainer.epochs for phase in frames.values()
    )


def test_the_til_of_the_docs_is_that_of_the_study():
    text = (ROOT / "docs/papers/keyframe.md").read_text(encoding="utf-8")
    (row,) = [line for line in text.splitlines() if line.startswith("| TIL | `--train-args")]
    (changes,) = shlex.split(row.split("`")[1])[1:]
    config = ROOT / "egs/aishell1/conf/keyframe/train_keyframe.yaml"
    variants = runpy.run_path(str(STUDIES / "keyframe_variants.py"))["variants"]
    assert load_phases(config, split_overrides([changes])) == variants(load_phases(config))["til"]
