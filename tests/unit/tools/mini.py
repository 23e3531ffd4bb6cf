"""Runs the generator of miniature corpora in tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parents[3] / "tools"


def make(layout: str, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the command; it may fail."""
    command = [
        sys.executable,
        str(TOOLS / "make_mini_corpus.py"),
        "--layout",
        layout,
        "--out",
        str(out),
    ]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


def made(layout: str, out: Path, *options: str) -> Path:
    """Run the command, which must succeed; returns `out`."""
    finished = make(layout, out, *options)
    assert finished.returncode == 0, finished.stderr
    return out


def table(file: Path, separator: str | None = None) -> dict[str, str]:
    """Id -> value of a file with two columns and unique ids."""
    rows = [line.split(separator, 1) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(dict(rows)) == len(rows), file
    return dict(rows)
