"""What is expensive to make is made once for all processes of a test run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from asrtool.system import stamp


def once(request: pytest.FixtureRequest, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that `make(folder)` fills: the process that needs it first does, others wait for it.
    No test may change what is in it, but for one that holds `alone(folder)`.
    """
    base = request.getfixturevalue("tmp_path_factory").getbasetemp()
    if hasattr(
        request.config, "workerinput"
    ):  # each process of xdist has a folder in the common one
        base = base.parent
    folder, made = base / name, base / f"{name}.made"
    with stamp.locked(made, wait=True):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)  # whoever began it failed
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def alone(folder: Path) -> object:
    """A context in which no test of another process holds the same folder."""
    return stamp.locked(folder, wait=True)
