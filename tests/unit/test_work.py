from __future__ import annotations

import subprocess
import sys

PRINT = "import os, {module}; print(os.environ.get('ONEDNN_PRIMITIVE_CACHE_CAPACITY'))"


def test_kernels_are_limited_where_a_set_is_worked_through_and_not_in_training(monkeypatch) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    limits = {}
    for name in ("train", "decode"):
        command = [sys.executable, "-c", PRINT.format(module=f"asrtool.bin.{name}")]
        limits[name] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    assert limits == {"train": "None", "decode": "256"}
