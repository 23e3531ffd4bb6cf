"""SIGTERM and kill -9 at random moments of training, then the same command again: the same weights,
bit for bit.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asrtool.trainer import checkpoint
from tests.toy_corpus import arguments, write_corpus
from tests.toy_interruptions import MOMENTS, Interruption, run
from tests.toy_ranks import start

ROOT = Path(__file__).parents[3]
SIGNALS = (signal.SIGTERM, signal.SIGKILL)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root)
    return root


def train(
    world: int, data: Path, folder: Path, interruption: Interruption | None = None
) -> list[int]:
    """Exit statuses of the ranks, all of which end."""
    ranks = start(run, world, data, folder / "exp", interruption)
    for process in ranks:
        process.join(120)
    return [process.exitcode for process in ranks]


def result(folder: Path) -> dict[str, bytes]:
    """The last checkpoint, and the average of the best three."""
    last = checkpoint.latest(folder / "exp" / "train")
    files = [
        last / checkpoint.MODEL,
        last / checkpoint.OPTIMIZER,
        last.parent / "average-3.safetensors",
    ]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two ranks"])
def undisturbed(request, data, tmp_path_factory) -> tuple[int, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train(request.param, data, folder) == [0] * request.param
    return request.param, result(folder)


def interruptions(folder: Path) -> list[list[str]]:
    """Those that took place, by rank."""
    return [
        re.findall("^interrupted.*$", file.read_text(), re.M)
        for file in sorted(folder.glob("said-*"))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_training_that_is_interrupted_five_times_ends_with_the_same_bits(
    data, tmp_path, undisturbed, seed
):
    world, expected = undisturbed
    draw = random.Random(f"{seed}/{world}")
    for number in range(1, 6):
        # the average is made once, at the end
        moment = draw.choice([name for name in MOMENTS if number == 5 or "average" not in name])
        # what rank 0 does
        alone = any(word in moment for word in ("file", "renaming", "deleted", "average"))
        rank = 0 if alone else draw.randrange(world)
        times = 1 if "average" in moment else draw.randint(1, 3)
        train(world, data, tmp_path, Interruption(rank, moment, times, draw.choice(SIGNALS)))
        assert sum(map(len, interruptions(tmp_path))) == number
    assert train(world, data, tmp_path) == [0] * world
    print(*(line for lines in interruptions(tmp_path) for line in lines), sep="\n")
    assert result(tmp_path) == expected


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes through /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_stops_all_within_30_seconds_and_is_named(data, tmp_path, victim):
    torchrun = [
        sys.executable,
        "-m",
        "asrtool.bin.torchrun",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    endless = ["--set", "trainer.epochs=100000 trainer.save_every_seconds=0.5"]
    command = [*torchrun, "-m", "asrtool.bin.train", *arguments(data, tmp_path / "exp", *endless)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ASRTOOL_VICTIM": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as launcher:
        while not list(tmp_path.glob("exp/train/step-*")):
            assert launcher.poll() is None, launcher.stderr.read()
            time.sleep(0.05)
        ranks = rank_processes(str(tmp_path))
        os.kill(ranks[victim], signal.SIGKILL)
        began = time.monotonic()
        _, said = launcher.communicate(timeout=60)
    assert time.monotonic() - began < 30
    assert launcher.returncode != 0
    assert f"rank {victim} was killed by signal 9" in said or f"rank {victim} on " in said
    assert not rank_processes(str(tmp_path))
    assert "Traceback" not in said


def rank_processes(mark: str) -> dict[int, int]:
    """Rank -> process, of those whose environment carries the mark."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parts = (folder / "environ").read_text().split("\0")
            environment = dict(part.split("=", 1) for part in parts if "=" in part)
        except (OSError, UnicodeDecodeError):
            continue
        if environment.get("ASRTOOL_VICTIM") == mark and "RANK" in environment:
            found.setdefault(int(environment["RANK"]), int(folder.name))
    return found
