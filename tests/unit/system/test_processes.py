"""A child that has to end with its parent, as seen by the pipe that it holds open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from asrtool.system import processes

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux ends children"
)

CHILD = """
from asrtool.system import processes
processes.follow_parent()
print("ready", flush=True)
__import__("time").sleep(60)
"""
PARENT = f"""
import os, subprocess, sys
parent = sys.argv[1] if len(sys.argv) > 1 else str(os.getpid())
environment = {{**os.environ, "{processes.PARENT}": parent}}
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], env=environment)
child.wait()
"""


@pytest.fixture
def start():
    started = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        root = Path(processes.__file__).parents[2]
        command = [sys.executable, "-c", PARENT, *arguments]
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_child_dies_when_its_parent_is_killed(start) -> None:
    parent = start()
    assert parent.stdout.readline() == "ready\n"
    parent.kill()
    parent.communicate(timeout=30)  # returns at the end of the pipe, when nobody holds it any more


def test_a_child_whose_parent_is_gone_already_ends_at_once(start) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert start(str(gone.pid)).communicate(timeout=30)[0] == ""
