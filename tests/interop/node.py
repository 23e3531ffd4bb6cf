"""npm packages in a folder of the test's own, and scripts under node."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest


def install(folder: Path, *names: str) -> Path:
    """Install packages into `folder`; skips the test where npm or they are missing."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are missing")
    folder.mkdir()
    done = subprocess.run(["npm", "install", "--prefix", folder, *names], capture_output=True)
    if done.returncode:
        pytest.skip(f"npm cannot install {', '.join(names)}")
    return folder / "node_modules"


def run(packages: Path, *arguments: object) -> str:
    """What a script of this folder prints."""
    script, *others = map(str, arguments)
    done = subprocess.run(
        ["node", Path(__file__).parent / script, *others],
        env={**os.environ, "NODE_PATH": str(packages)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
