"""Helpers for tests of `local/prepare_data.py`: how to run it, and where real recordings are."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORPORA = Path(os.environ.get("ASRTOOL_CORPORA", ROOT.parent / "shared" / "corpora"))


def real(name: str) -> Path:
    """A folder of real recordings in that of ASRTOOL_CORPORA; skips the test if it is missing."""
    if not (CORPORA / name).is_dir():
        pytest.skip(f"no recordings in {CORPORA / name}; set ASRTOOL_CORPORA to their folder")
    return CORPORA / name


def load(recipe: str, script: str) -> ModuleType:
    """`local/<script>.py` of a recipe as a module."""
    path = ROOT / "egs" / recipe / "local" / f"{script}.py"
    spec = importlib.util.spec_from_file_location(f"{recipe}_{script}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prepare(recipe: str, source: Path, out: Path, *options: str) -> None:
    """Run `local/prepare_data.py` of a recipe in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "egs" / recipe / "local")
        patch.setattr(
            "sys.argv", ["prepare_data.py", "--corpus", str(source), "--out", str(out), *options]
        )
        load(recipe, "prepare_data").main()


def content(folder: Path) -> dict[str, bytes]:
    """Path -> content of all files below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
