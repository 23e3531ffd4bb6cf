"""The tests' `python` behaves like the real one, without importing torch each time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import warm_python

ROOT = Path(__file__).parents[3]
SCRIPT = """
import os, sys
print(__name__, sys.argv, os.getcwd(), os.environ["KEY"], sys.stdin.read())
print("asrtool" in sys.modules)
print("torch" in sys.modules, file=sys.stderr)
sys.exit(int(sys.argv[-1]))
"""


def run(python: str, *words: str, cwd: Path, given: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, *words],
        env={**os.environ, "KEY": "value", "PYTHONPATH": str(cwd)},
        cwd=cwd,
        input=given,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("words", [("script.py", "a b", "3"), ("-m", "script", "0"), ("-", "0")])
def test_a_command_does_what_it_does_in_the_real_one(tmp_path, words):
    (tmp_path / "script.py").write_text(SCRIPT)
    given = SCRIPT if words[0] == "-" else "given"
    warm, real = (
        run(python, *words, cwd=tmp_path, given=given)
        for python in (warm_python.python(), sys.executable)
    )
    assert (warm.stdout, warm.returncode) == (real.stdout, real.returncode)
    assert (warm.stderr, real.stderr) == ("True\n", "False\n")
    assert warm.stdout.startswith("__main__") and warm.stdout.endswith("False\n")


def test_an_error_ends_a_module_with_its_name():
    said = run(warm_python.python(), "-m", "asrtool.bin.score", "a", "b", cwd=ROOT).stderr
    assert said == run(sys.executable, "-m", "asrtool.bin.score", "a", "b", cwd=ROOT).stderr
    assert said.startswith("score: ")


def test_a_signal_reaches_the_command(tmp_path):
    (tmp_path / "script.py").write_text(
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "open('began', 'w').close()\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([warm_python.python(), "script.py"], cwd=tmp_path) as process:
        while not (tmp_path / "began").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 7


def test_death_by_a_signal_is_reported(tmp_path):
    (tmp_path / "script.py").write_text("import os\nos.kill(os.getpid(), 9)\n")
    assert run(warm_python.python(), "script.py", cwd=tmp_path).returncode == -signal.SIGKILL
