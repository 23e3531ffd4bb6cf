"""A rank that ends takes the others with it, by name, even while they wait for it outside
Python.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asrtool.errors import UserError
from asrtool.system import peers

ROOT = Path(__file__).parents[3]
WORLD = 3


class Rank:
    def __init__(self, rank: int, folder: Path, how: str) -> None:
        self.said = folder / f"said-{rank}"
        command = [
            sys.executable,
            str(ROOT / "tests/toy_peers.py"),
            str(rank),
            str(WORLD),
            str(folder),
            how,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        with open(self.said, "w") as said:
            self.process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)


def end(folder: Path, how: str) -> tuple[list[int], list[str], float]:
    """Exit statuses, what was said, and the seconds between the end of rank 1 and of the last
    one.
    """
    ranks = [Rank(rank, folder, how) for rank in range(WORLD)]
    ranks[1].process.wait(120)
    began = time.monotonic()
    codes = [rank.process.wait(120) for rank in ranks]
    return codes, [rank.said.read_text() for rank in ranks], time.monotonic() - began


def test_a_killed_rank_ends_the_others_within_seconds_and_is_named(tmp_path):
    codes, said, seconds = end(tmp_path, "killed")
    assert codes == [1, -9, 1]
    assert seconds < 12  # 3 by design
    assert "toy_peers: rank 1 on " in said[0]
    assert "died (killed" in said[0]
    assert said[2] == ""  # rank 0 speaks for all


def test_a_rank_with_an_error_speaks_for_itself_and_ends_the_others(tmp_path):
    codes, said, _ = end(tmp_path, "error")
    assert codes == [1, 1, 1]
    assert "ValueError: out of luck" in said[1]
    assert said[0] == said[2] == ""


def test_a_rank_that_is_done_ends_alone(tmp_path):
    codes, said, _ = end(tmp_path, "leaves")
    assert codes == [0, 0, 0]
    assert said[0] == said[2] == "left\n"


def test_a_rank_that_cannot_reach_the_first_says_where_it_tried(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    sentence = "rank 3 cannot reach rank 0 at 127.0.0.1:1 .*firewalls"
    with pytest.raises(UserError, match=sentence), peers.watched(3, 4, lambda _: 1):
        pass
