"""Machine code: compiled at the first call, kept for the next process, whatever happens to where it
is kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

ROOT = Path(__file__).parents[2]
TWICE = """
from asrtool.compiled import compiled

@compiled
def twice(x):
    return 2 * x
"""
SUMS = """
from asrtool.compiled import compiled
from kernels.doubling import twice

@compiled
def total(row):
    found = 0.0
    for value in row:
        found += twice(value)
    return found
"""
CALL = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
import numpy as np
from kernels.sums import total
print("numba" in sys.modules, total(np.arange(4.0)), total(np.arange(4.0)))
"""
COMPILING = "compiling for this processor, which takes up to half a minute"
RESULT = "False 12.0 12.0"


def make(folder: Path) -> Path:
    """A folder with a package of kernels, and room for a cache that is shared by what `run`
    starts.
    """
    (folder / "kernels").mkdir()
    for name, text in (("__init__", ""), ("doubling", TWICE), ("sums", SUMS)):
        (folder / "kernels" / f"{name}.py").write_text(text)
    return folder


@pytest.fixture
def kernels(tmp_path: Path) -> Path:
    return make(tmp_path)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after a first process."""
    folder = make(tmp_path_factory.mktemp("known"))
    assert run(folder) == [COMPILING, RESULT]
    return folder


def start(kernels: Path, code: str = CALL, **environment: str) -> subprocess.Popen:
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "HOME")
    }
    environment = {
        "XDG_CACHE_HOME": str(kernels / "cache"),
        "PYTHONPATH": f"{kernels}:{ROOT}",
        **environment,
    }
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, env=inherited | environment, stdout=subprocess.PIPE, text=True)


def run(kernels: Path, code: str = CALL, **environment: str) -> list[str]:
    """The lines that a new process prints."""
    process = start(kernels, code, **environment)
    said = process.communicate()[0].splitlines()
    assert process.returncode == 0
    return said


def kept(kernels: Path, pattern: str = "*.nbi") -> list[Path]:
    return sorted((kernels / "cache").rglob(pattern))


def test_the_second_process_finds_what_the_first_one_compiled(known):
    assert kept(known) and not list((known / "kernels").rglob("*.nb?"))
    assert run(known) == [RESULT]


def test_a_change_in_the_file_of_a_function_that_is_called_is_seen(known):
    file = known / "kernels" / "doubling.py"
    file.write_text(TWICE.replace("2 * x", "3 * x"))
    try:
        assert run(known) == [COMPILING, RESULT.replace("12", "18")]
    finally:
        file.write_text(TWICE)


def test_a_change_outside_the_folder_of_the_caller_is_seen(tmp_path):
    """tool.kernels.row.sums.total calls tool.kernels.doubling.twice from a folder below it."""
    make(tmp_path)
    (tmp_path / "tool").mkdir()
    (tmp_path / "tool/__init__.py").write_text("")
    package = (tmp_path / "kernels").rename(tmp_path / "tool/kernels")
    (package / "sums.py").unlink()
    (package / "row").mkdir()
    (package / "row/__init__.py").write_text("")
    (package / "row/sums.py").write_text(SUMS.replace("kernels", "tool.kernels"))
    call = CALL.replace("kernels", "tool.kernels.row")
    assert run(tmp_path, call) == [COMPILING, RESULT]
    assert run(tmp_path, call) == [RESULT]
    (package / "doubling.py").write_text(TWICE.replace("2 * x", "3 * x"))
    assert run(tmp_path, call) == [COMPILING, RESULT.replace("12", "18")]


def test_several_processes_at_once_compile_once(kernels):
    together = [start(kernels) for _ in range(2)]
    said = [process.communicate()[0].splitlines() for process in together]
    assert all(lines[-1] == RESULT for lines in said)
    assert sum(COMPILING in lines for lines in said) == 1


def test_a_torn_file_is_made_anew(known):
    for file in kept(known, "*.nbc"):
        file.write_bytes(b"")
    assert run(known) == [COMPILING, RESULT]


def test_where_nothing_can_be_kept_the_process_says_so_and_goes_on(kernels):
    warning, *said = run(kernels, NUMBA_CACHE_DIR="/dev/null/cache")
    assert warning.startswith("compiled code cannot be kept (") and "NUMBA_CACHE_DIR" in warning
    assert said == [COMPILING, RESULT]


def test_a_full_disk_stops_nothing(kernels):
    full = "import resource, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    full += "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    said = run(kernels, full + CALL)
    assert said[0] == COMPILING and said[-1] == RESULT
    assert [line.split(" (")[0] for line in said[1:-1]] == ["compiled code cannot be kept"]


def test_without_numba_it_is_plain_python(kernels):
    without = "import sys\nsys.modules['numba'] = None\n"
    assert run(kernels, without + CALL.replace('"numba" in sys.modules', "False")) == [RESULT]
    assert not (kernels / "cache").exists()
