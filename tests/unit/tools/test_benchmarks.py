"""The benchmark scripts run, at sizes that say nothing about speed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.toy_corpus import write_corpus

ROOT = Path(__file__).parents[3]


def test_the_steps_of_a_recipe_are_timed(tmp_path) -> None:
    write_corpus(tmp_path)
    command = [
        *(sys.executable, ROOT / "tools/benchmarks/recipe_step.py", tmp_path / "config.yaml"),
        *("--train", tmp_path / "train", "--vocab", tmp_path / "vocab", "--rounds", "1", "--warm", "0", "--steps", "1"),
        *("--contender", f"auto@{ROOT}: trainer.precision=auto ONEDNN_PRIMITIVE_CACHE_CAPACITY=64"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "instructions for bf16: " in done.stdout
    assert "auto" in done.stdout.splitlines()[-1]
    assert "1.00 times the first" in done.stdout
