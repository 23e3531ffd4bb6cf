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


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_training_that_is_interrupted_five_times_ends_with_the_same_bits(data, tmp_path, undisturbed, seed):
    world, expected = undisturbed
    draw, done = random.Random(f"{seed}/{world}"), 0
    while done < 5:
        moment = draw.choice(list(MOMENTS))
        writes = draw.randint(1, 6) if moment != "while the average is made" else 1
        rank = 0 if "file" in moment or "renaming" in moment or "deleted" in moment else draw.randrange(world)
        codes = train(world, data, tmp_path, Interruption(rank, moment, writes, draw.choice(SIGNALS)))
        said = (tmp_path / f"said-{rank}").read_text()
        done = len(re.findall("^interrupted", said, re.M))
        if codes == [0] * world and "finished after" in (tmp_path / "said-0").read_text():
            break  # nothing is left to interrupt
    assert train(world, data, tmp_path) == [0] * world
    print(*re.findall("^interrupted.*$", "".join(f.read_text() for f in tmp_path.glob("said-*")), re.M), sep="\n")
    assert result(tmp_path) == expected
