"""A recipe in its own folder, with a tiny model, that tests can run, stop and damage."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests import warm_python

ROOT = Path(__file__).resolve().parents[2]
WRITTEN = ("data", "dump", "exp", "downloads")
OPTIONS = ("--train-config", "conf/train_toy.yaml", "--ngpu", "0", "--ranks", "1", "--nj", "2")
CONFIG = """
data: {batch: {seconds: 20}, workers: 1, augment: {spec_augment: {}}}
model:
  type: hybrid
  encoder:
    {type: conformer, num_layers: 1, dim: 16, num_heads: 2, ffn_dim: 32, kernel: 3,
     downsamplers: {0: {type: conv2d, factor: 4, channels: 4}}}
losses: {ctc: {type: ctc, weight: 1.0}}
optim: {lr: 1e-3}
trainer: {epochs: 3, average: 2, validate_every: 4, save_every_seconds: 0.2}
"""

# commands that are not stopped run in a Python that has already imported torch
PYTHON = """\
#!/usr/bin/env bash
if [[ -n ${{ONLY_REAL:-}} && " $* " != *"$ONLY_REAL "* ]]; then exec {warm} "$@"; fi
exec {real} "$@"
"""
NOTHING = "no command"


class Workspace:
    """A recipe next to links to the package and its tools; its processes are marked."""

    def __init__(self, folder: Path, recipe: str = "librispeech") -> None:
        for name in ("asrtool", "utils", "tools"):
            (folder / name).symlink_to(ROOT / name)
        self.recipe = folder / "egs" / recipe
        shutil.copytree(ROOT / "egs" / recipe, self.recipe, ignore=shutil.ignore_patterns(*WRITTEN))
        (self.recipe / "conf" / "train_toy.yaml").write_text(CONFIG)
        self._mark = f"ASRTOOL_TEST={uuid.uuid4()}"
        name, _, value = self._mark.partition("=")
        (folder / "bin").mkdir()
        (folder / "bin/python").write_text(
            PYTHON.format(real=sys.executable, warm=warm_python.python())
        )
        (folder / "bin/python").chmod(0o755)
        path = f"{folder / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", name: value}
        self.log = folder / "log"

    def start(self, *options: str, real: str = "") -> subprocess.Popen[str]:
        """Start the recipe as a terminal does, as the leader of a process group; output: `log`.

        Commands without `real` in their line are forked from a Python with torch; they are not
        meant to be stopped.
        """
        command = [str(self.recipe / "run.sh"), *OPTIONS, *options]
        with open(self.log, "w") as log:
            return subprocess.Popen(
                command,
                env={**self.environment, "ONLY_REAL": real},
                stdout=log,
                stderr=log,
                start_new_session=True,
                text=True,
            )

    def run(self, *options: str, real: str = "") -> str:
        """Run the recipe, which must succeed; returns its output."""
        status = self.start(*options, real=real).wait()
        assert status == 0, f"{status}: {self.said()}"
        return self.said()

    def refuse(self, *options: str, real: str = "") -> list[str]:
        """Run the recipe, which must fail; returns its output without the lines of the engine."""
        status = self.start(*options, real=real).wait()
        assert status not in (0, None), self.said()
        return [line for line in self.said().splitlines() if not line.startswith(("+ ", "20"))]

    def said(self) -> str:
        return self.log.read_text()

    def clear(self) -> None:
        for name in WRITTEN:
            shutil.rmtree(self.recipe / name, ignore_errors=True)

    # -- processes ---------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Process id -> command line of all running processes of this workspace."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (
                        (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    )
            except OSError:
                continue
        return found

    def children(self, parent: int) -> list[int]:
        """The descendants of the process `parent`."""
        found = []
        for child in self._started_by(parent):
            found += [child, *self.children(child)]
        return found

    @staticmethod
    def _started_by(parent: int) -> Iterator[int]:
        for file in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                yield from map(int, file.read_text().split())
            except OSError:
                continue

    def survivors(self, patience: float = 10.0) -> dict[int, str]:
        """The processes that are still running after `patience` seconds; should be none."""
        end = time.monotonic() + patience
        while (found := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        for process in found:
            os.kill(process, signal.SIGKILL)
        return found

    # -- results -----------------------------------------------------------

    def result(self) -> dict[str, str]:
        """Digests of all that a user keeps: corpus, data, features, vocabulary, weights,
        hypotheses, scores.
        """
        digests = {}
        for path in sorted(
            path for name in WRITTEN for path in (self.recipe / name).rglob("*") if path.is_file()
        ):
            name = str(path.relative_to(self.recipe))
            # when it happened
            if path.name in ("git.txt", "command.txt", "log.jsonl", "RESULTS.md"):
                continue
            # which checkpoints are left depends on the stops
            if "/step-" in name or path.name == "latest.json":
                continue
            digests[name] = hashlib.sha256(_content(path)).hexdigest()
        return digests


def _content(path: Path) -> bytes:
    """Of hyps.jsonl all but the time that it took."""
    if path.name != "hyps.jsonl":
        return path.read_bytes()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return json.dumps(
        [{**line, "elapsed": None, "latency": None, "rtf": None} for line in lines]
    ).encode()
