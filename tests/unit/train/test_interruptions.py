"""SIGTERM and kill -9 at random moments of training, then the same command again: the same weights, bit for bit."""

from __future__ import annotations

import random
import re
import signal
from pathlib import Path

import pytest

from asrtool.train import checkpoint
from tests.toy_corpus import write_corpus
from tests.toy_interruptions import MOMENTS, Interruption, run
from tests.toy_ranks import start

SIGNALS = (signal.SIGTERM, signal.SIGKILL)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write_corpus(root)
    return root


def train(world: int, data: Path, folder: Path, interruption: Interruption | None = None) -> list[int]:
    """Exit statuses of the ranks, all of which end."""
    ranks = start(run, world, data, folder / "exp", interruption)
    for process in ranks:
        process.join(120)
    return [process.exitcode for process in ranks]


def result(folder: Path) -> dict[str, bytes]:
    """The last checkpoint, and the average of the best three."""
    last = checkpoint.latest(folder / "exp" / "train")
    files = [last / checkpoint.MODEL, last / checkpoint.OPTIMIZER, last.parent / "average-3.safetensors"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two ranks"])
def undisturbed(request, data, tmp_path_factory) -> tuple[int, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert train(request.param, data, folder) == [0] * request.param
    return request.param, result(folder)


def interruptions(folder: Path) -> list[list[str]]:
    """Those that took place, by rank."""
    return [re.findall("^interrupted.*$", file.read_text(), re.M) for file in sorted(folder.glob("said-*"))]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_training_that_is_interrupted_five_times_ends_with_the_same_bits(data, tmp_path, undisturbed, seed):
    world, expected = undisturbed
    draw = random.Random(f"{seed}/{world}")
    for number in range(1, 6):
        # the average is made once, at the end
        moment = draw.choice([name for name in MOMENTS if number == 5 or "average" not in name])
        alone = any(word in moment for word in ("file", "renaming", "deleted", "average"))  # what rank 0 does
        rank = 0 if alone else draw.randrange(world)
        time = 1 if "average" in moment else draw.randint(1, 3)
        train(world, data, tmp_path, Interruption(rank, moment, time, draw.choice(SIGNALS)))
        assert sum(map(len, interruptions(tmp_path))) == number
    assert train(world, data, tmp_path) == [0] * world
    print(*(line for lines in interruptions(tmp_path) for line in lines), sep="\n")
    assert result(tmp_path) == expected
