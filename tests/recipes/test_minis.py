"""Stages 0 to 5 of all recipes on their tiny miniatures: the commands of a dry run, toy models."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import shlex
import subprocess
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.recipes.preparation import real
from tests.recipes.workspace import NOTHING, OPTIONS, Workspace

RECIPES = {
    "aishell1": ("aishell1", ()),
    "aishell2": ("aishell2", ()),
    "kespeech": ("kespeech", ()),
    "magicdata": ("magicdata", ()),
    "read_speech": ("magicdata", ("--kind", "read")),
}
STAGES = {
    "prepare_data",
    "check_data",
    "extract_features",
    "make_vocab",
    "train",
    "decode",
    "score",
    "results",
}
HANZI = {
    "aishell1": "zh",
    "aishell2": "zh-aishell2",
    "kespeech": "zh-kespeech",
    "magicdata": "zh-magicdata",
}


class InProcess:
    """Runs the lines of a dry run without starting a Python for each of them."""

    def __init__(self, work: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        self.work, self.patch = work, monkeypatch
        self.ran: set[str] = set()
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def __call__(self, *options: str) -> None:
        command = [str(self.work.recipe / "run.sh"), *OPTIONS, *options, "--dry-run", "true"]
        environment = {**self.work.environment, "ONLY_REAL": NOTHING}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.patch.chdir(self.work.recipe)
        for line in filter(None, done.stdout.split("\n")):
            if not line.startswith(("#", "cd ", ". ", "export ")):
                self.run(shlex.split(line))

    def run(self, words: list[str]) -> None:
        if words[:2] == ["python", "-m"]:
            module, arguments = words[2], words[3:]
            importlib.import_module(module).main(arguments)
        elif words[0] == "python":
            # its workers would look for a relative one where pytest was started
            script = Path(words[1]).resolve()
            module, arguments = script.stem, words[2:]
            with self.patch.context() as patch:
                patch.syspath_prepend(str(script.parent))
                patch.setattr("sys.argv", [str(script), *arguments])
                with (
                    pytest.raises(SystemExit)
                    if module == "make_mini_corpus"
                    else nullcontext() as ended
                ):
                    runpy.run_path(str(script), run_name="__main__")
            assert ended is None or ended.value.code == 0
        else:
            assert words[0].endswith("utils/score.sh")
            module, arguments = "score", words[1:]
            importlib.import_module("asrtool.bin.score").main(arguments)
        self.ran.add(module.rpartition(".")[2])


@pytest.fixture
def run(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> InProcess:
    return InProcess(Workspace(tmp_path, request.param), monkeypatch)


@pytest.mark.parametrize(("run", "options"), RECIPES.values(), ids=RECIPES, indirect=["run"])
def test_all_stages_run_on_the_tiny_miniature(run: InProcess, options: tuple[str, ...]) -> None:
    pytest.importorskip(
        "espeakng_loader",
        reason="the miniature is synthesised by espeak-ng: pip install -e '.[mini]'",
    )
    run("--mini", "true", "--mini-size", "tiny", "--nj", "1", *options)
    assert run.ran == STAGES | {"make_mini_corpus"}
    part = "read/mini_tiny" if options else "mini_tiny"
    data = run.work.recipe / "data" / part
    tests = (data / "test_sets").read_text().split()
    assert len(tests) == (3 if run.work.recipe.name == "aishell2" else 1)
    for name in tests:
        scored = run.work.recipe / "exp" / part / "train_toy" / "decode_mini" / name / "score.json"
        score = json.loads(scored.read_text())
        text = (data / name / "text").read_text(encoding="utf-8").splitlines()
        assert score["total"]["reference"] == sum(len("".join(line.split()[1:])) for line in text)
        assert (score["metric"], score["normalizer"]) == ("cer", HANZI[run.work.recipe.name])
    if run.work.recipe.name == "kespeech":
        labels = json.loads((data / "vocab_char" / "labels.json").read_text())
        assert len(labels["subdialect"]) == 9
        assert score["groups"]["subdialect"].keys() == set(labels["subdialect"])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), RECIPES.values(), ids=RECIPES)
def test_the_recipe_itself_runs_all_stages_and_shows_a_table(
    tmp_path: Path, name: str, options: tuple[str, ...]
) -> None:
    said = Workspace(tmp_path, name).run("--mini", "true", "--mini-size", "tiny", *options)
    assert "CER %" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "corpus", "tests"),
    [
        ("aishell1", "aishell_mini", {"test", "test_spk"}),
        ("aishell1", "aishell_mini/audio", {"test"}),
        ("librispeech", "librispeech_mini", {"test", "test_other"}),
        ("librispeech", "librispeech_mini/audio", {"test_other"}),
    ],
)
def test_all_stages_run_on_real_speech(
    tmp_path: Path, name: str, corpus: str, tests: set[str]
) -> None:
    work = Workspace(tmp_path, name)
    unit = ("--unit", "char", "--vocab-size", "0", "--decode-config", "conf/decode_mini.yaml")
    epochs = ("--train-args", "trainer.epochs=1 trainer.validate_every=1000 data.batch.seconds=200")
    work.run("--corpus", os.fspath(real(corpus)), *unit, *epochs)
    scores = {
        path.parent.name
        for path in (work.recipe / "exp/train_toy/decode_mini").glob("*/score.json")
    }
    assert scores == tests
