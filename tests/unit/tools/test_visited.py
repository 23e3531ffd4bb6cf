"""Counting the functions that an operation calls; a model's config is read once."""

from __future__ import annotations

import re
import runpy

import asrtool
from asrtool import config
from tests.unit.tools.mini import TOOLS


def test_files_and_functions_are_counted(toy, capsys):
    audio = next((toy / "data/test/audio").glob("*.wav"))
    given = ["--audio", audio, "--train", toy / "dump/train", "--vocab", toy / "vocab", "--list"]
    runpy.run_path(str(TOOLS / "visited.py"))["main"]([str(toy / "exp"), *map(str, given)])
    said = capsys.readouterr().out
    counts = re.findall(r"^([\w. ]+): (\d+) files, (\d+) functions$", said, re.MULTILINE)
    assert [name for name, *_ in counts] == ["asrtool.load", "recognize", "optimizer step"]
    assert all(5 < int(files) < int(functions) for _, files, functions in counts)
    assert "  losses/ctc.py CtcLoss.__call__" in said


def test_a_model_is_loaded_with_one_look_at_its_config(toy, monkeypatch):
    read, seen = config.read, []
    monkeypatch.setattr(config, "read", lambda path: seen.append(path) or read(path))
    asrtool.load(toy / "exp")
    assert seen == [toy / "exp/config.yaml"]
