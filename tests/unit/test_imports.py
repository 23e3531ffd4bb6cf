"""Modules of a user's own: named by the user, and never by a model."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from asrtool import imports
from asrtool.errors import UserError
from asrtool.experiment import TrainConfig, dump_phases, load_phases
from asrtool.model_folder import Experiment
from tests.unit.test_experiment import BASE, PHASES


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of a fresh name into a folder; gives its name."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)

    def write(folder, name: str, text: str = "") -> str:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text(text)
        return name

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("strange_"):
            del sys.modules[name]


def config_of(tmp_path, text: str):
    path = tmp_path / "train.yaml"
    path.write_text(BASE + text)
    return path


def test_a_config_imports_what_it_names_and_keeps_the_names(tmp_path, module):
    name = module(tmp_path / "mine", "strange_one")
    path = config_of(tmp_path, f"import: [{name}]\n")
    phases = load_phases(path, import_from=[tmp_path / "mine"])
    assert name in sys.modules and phases["train"].import_ == (name,)
    (tmp_path / "config.yaml").write_text(dump_phases(phases))
    assert "import:\n    - strange_one\n" in (tmp_path / "config.yaml").read_text()
    assert load_phases(tmp_path / "config.yaml") == phases


def test_phases_share_the_modules(tmp_path, module):
    name = module(tmp_path / "mine", "strange_two")
    path = config_of(tmp_path, f"import: [{name}]\n{PHASES}")
    phases = load_phases(path, import_from=[tmp_path / "mine"])
    assert [phase.import_ for phase in phases.values()] == [(name,), (name,)]


def test_a_config_without_the_key_is_written_as_before(tmp_path):
    assert "import" not in dump_phases(load_phases(config_of(tmp_path, "")))
    assert TrainConfig.__dataclass_fields__["import_"].default == ()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("strange_none", "there is no module 'strange_none' to import: install it, or"),
        ("strange_none.part", "there is no module 'strange_none' to import"),
        ("mine/strange.py", "cannot import 'mine/strange.py': expected the name of a module"),
    ],
)
def test_a_wrong_name_is_one_sentence(tmp_path, name, sentence):
    with pytest.raises(UserError, match=sentence):
        load_phases(config_of(tmp_path, f"import: [{name}]\n"))


def test_a_module_that_fails_is_named_with_its_error(tmp_path, module):
    name = module(tmp_path / "mine", "strange_three", "import strange_missing\n")
    with pytest.raises(UserError, match="'strange_three' cannot be imported: .*strange_missing"):
        imports.load([name], [tmp_path / "mine"])
    name = module(tmp_path / "mine", "strange_four", "1 / 0\n")
    with pytest.raises(UserError, match="'strange_four' cannot be imported: ZeroDivisionError"):
        imports.load([name])


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="--import-from .*nowhere: there is no such folder"):
        imports.load([], [tmp_path / "nowhere"])


def test_a_model_imports_nothing_and_says_what_it_needs(tmp_path, module):
    name = module(tmp_path / "exp", "strange_five", "raise SystemExit('the model ran its code')\n")
    (tmp_path / "exp" / "config.yaml").write_text(BASE + f"import: [{name}]\n")
    said = r"needs strange_five, which.*--import strange_five \(Python: imports=\['strange_five'\]"
    with pytest.raises(UserError, match=said):
        Experiment.open(tmp_path / "exp")
    assert name not in sys.modules


@pytest.mark.parametrize("entry", ["", ".", "here"])
def test_a_model_in_the_current_folder_gives_no_module(tmp_path, module, monkeypatch, entry):
    name = module(tmp_path / "exp", "strange_six", "raise SystemExit('the model ran its code')\n")
    (tmp_path / "exp" / "config.yaml").write_text(BASE + f"import: [{name}]\n")
    monkeypatch.chdir(tmp_path / "exp")
    sys.path.insert(0, str(tmp_path / "exp") if entry == "here" else entry)
    with pytest.raises(UserError, match="no module 'strange_six'.*current folder is not"):
        Experiment.open(tmp_path / "exp", imports=[name])
    assert name not in sys.modules and sys.path[0] in ("", ".", str(tmp_path / "exp"))
    # the same name from where the user has it
    module(tmp_path / "mine", name)
    imports.load([], [tmp_path / "mine"])
    assert Experiment.open(tmp_path / "exp", imports=[name]).phase()[1].import_ == (name,)


def test_a_command_in_the_folder_of_a_model_runs_none_of_its_code(tmp_path, module):
    name = module(tmp_path / "exp", "strange_seven", "print('the model ran its code')\n")
    (tmp_path / "exp" / "config.yaml").write_text(BASE + f"import: [{name}]\n")
    command = [sys.executable, "-m", "asrtool.bin.recognize", ".", "a.wav"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    for more, said in (([], "give --import strange_seven"), (["--import", name], "no module")):
        done = subprocess.run(
            [*command, *more],
            cwd=tmp_path / "exp",
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
        assert "ran its code" not in done.stdout + done.stderr


def test_the_current_folder_is_searched_where_the_user_names_it(tmp_path, module, monkeypatch):
    name = module(tmp_path / "mine", "strange_eight")
    monkeypatch.chdir(tmp_path / "mine")
    imports.load([name], ["."])
    assert name in sys.modules


def test_a_command_that_reads_a_training_config_says_where_modules_are_named(capsys):
    options = argparse.ArgumentParser()
    imports.add_options(options, modules=False)
    with pytest.raises(SystemExit):
        options.parse_args(["--import", "my_package"])
    assert "name them there, in import: [...]" in capsys.readouterr().err
    assert options.parse_args(["--import-from", "."]).import_from == [Path(".")]
