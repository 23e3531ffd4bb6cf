"""The scripts with Kaldi's names in utils/: they exist, and pass their arguments to asrtool."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "copy_data_dir.sh": ["asrtool.bin.data", "copy"],
    "combine_data.sh": ["asrtool.bin.data", "combine"],
    "subset_data_dir.sh": ["asrtool.bin.data", "subset"],
    "split_data.sh": ["asrtool.bin.data", "split"],
    "perturb_data_dir_speed.sh": ["asrtool.bin.data", "perturb-speed"],
    "validate_data_dir.sh": ["asrtool.bin.check_data"],
    "fix_data_dir.sh": ["asrtool.bin.check_data", "--fix"],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_passes_its_arguments_on(name: str, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "path.sh").write_text(f'export PATH="{tmp_path}:$PATH"\n')
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then exec {sys.executable} "$@"; fi\nprintf "%s\\n" "$@"\n'
    )
    python.chmod(0o755)
    command = [str(ROOT / "utils" / name), "--opt", "a b", "data/x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["-m", *SCRIPTS[name], "--opt", "a b", "data/x"], done.stderr
