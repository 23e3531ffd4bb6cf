"""The Dockerfile: a linter accepts it, and its steps make a working environment. They are run as a
script in a temporary folder, which needs no Docker.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import asrtool
from tests.recipes.conftest import clone

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "tools" / "docker"
DOCKERFILE = FOLDER / "Dockerfile"
PLACES = re.compile(r"(?<![\w.])/(?=(?:opt|data|cache)\b)")  # of the image


def steps() -> Iterator[tuple[str, str]]:
    """Instruction and arguments of each step, on one line."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name, rest.strip()


def script(context: Path, image: Path, arguments: dict[str, str]) -> str:
    """The steps in Bash, for an image whose root is the folder `image`."""
    lines = ["set -euo pipefail"]
    for name, rest in steps():
        rest = PLACES.sub(f"{image}/", rest)
        if name == "ARG":
            key, _, value = rest.partition("=")
            lines.append(f"export {key}={shlex.quote(arguments.get(key, value))}")
        elif name == "ENV":
            lines.append(f"export {rest}")
        elif name == "WORKDIR":
            lines.append(f"mkdir -p {rest}; cd {rest}")
        elif name == "COPY":
            *sources, target = rest.split()
            lines.append(f"cp -r {' '.join(str(context / source) for source in sources)} {target}")
        elif name == "RUN":
            lines.append(rest)
        elif name == "ENTRYPOINT":
            lines.append(f'exec {shlex.join(json.loads(rest))} "$@"')
            break
        else:
            assert name in ("FROM", "USER"), name
    return "\n".join(lines) + "\n"


def test_a_linter_accepts_it():
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    hadolint = shutil.which("hadolint", path=tools)
    if hadolint is None:
        pytest.skip("hadolint is not installed: tools/setup.sh")
    done = subprocess.run([hadolint, "--no-color", str(DOCKERFILE)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    worse = DOCKERFILE.read_text().replace("python:3.11-slim-bookworm", "python")
    done = subprocess.run(
        [hadolint, "--no-color", "-"], input=worse, capture_output=True, text=True
    )
    assert done.returncode and "DL3006" in done.stdout


def test_what_is_copied_is_sent_to_the_build_and_nothing_else():
    copied = {name for kind, rest in steps() if kind == "COPY" for name in rest.split()[:-1]}
    lines = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert sent == copied and "*" in lines
    assert all((ROOT / name).exists() for name in copied)


def test_the_arguments_are_those_of_the_set_up():
    arguments = dict(rest.split("=") for kind, rest in steps() if kind == "ARG")
    assert arguments["torch"] == "cpu"
    setup = (ROOT / "setup.py").read_text()
    assert all(f'"{name}": [' in setup for name in arguments["extras"].split(","))
    done = subprocess.run(
        ["tools/setup.sh", "--torch", "gpu"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "--torch must be auto, cpu, cuda or keep" in done.stderr


@pytest.mark.slow
def test_its_steps_make_an_asrtool_that_works(tmp_path):
    """The environment that the steps make begins with what the tests have, torch above all."""
    context, image = tmp_path / "context", tmp_path / "image"
    clone(context)
    venv = image / "opt" / "asrtool" / ".venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "tests.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["HOME"] = str(tmp_path)
    command = ["bash", "-c", script(context, image, {"torch": "auto"}), "asrtool", "--version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.strip().endswith(f"asrtool {asrtool.__version__}")
    # in another folder and without the tests' environment
    command = [str(venv / "bin" / "asrtool"), "fetch", "nothing"]
    done = subprocess.run(
        command, cwd=image / "data", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "nothing holds no config.yaml" in done.stderr
    assert oct((image / "cache").stat().st_mode)[-4:] == "1777"
