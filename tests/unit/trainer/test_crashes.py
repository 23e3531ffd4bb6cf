"""A training that is killed, or finds the disk full, before each change that it makes to the file
system.

The same command afterwards goes on from the last checkpoint that was whole, and ends with the same
files, bit for bit.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.toy_crashes import DEATH, child, crashing, die, full, kept, result, train

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
NEVER = 1 << 30


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    """What a training ends with, and how often it changes the file system."""
    folder = tmp_path_factory.mktemp("undisturbed") / "train"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(folder)  # so that the processes that are forked need not load all that it needs
    torch.set_num_threads(threads)
    counted = tmp_path_factory.mktemp("counted") / "train"
    assert child(lambda: crashing(counted, NEVER, die)) == 0
    return result(folder), int(saved(counted)[-1].removeprefix("changes "))


def saved(folder: Path) -> list[str]:
    return folder.with_name("done").read_text().splitlines()


def check(
    root: Path, first: int, undisturbed: dict[str, bytes], fault: object, status: int
) -> None:
    folder = root / str(first) / "train"
    folder.parent.mkdir()
    assert child(lambda: crashing(folder, first, fault)) == status, first
    assert not saved(folder) or kept(folder) >= saved(folder)[-1], first
    assert child(lambda: train(folder)) == 0, first
    assert result(folder) == undisturbed, first


FAULTS = pytest.mark.parametrize(
    ("fault", "status"), [(die, DEATH), (full, 1)], ids=["a kill", "a full disk"]
)


@FAULTS
def test_some_faults_change_nothing(tmp_path, undisturbed, fault, status):
    expected, changes = undisturbed
    for first in range(5, changes, 31):
        check(tmp_path, first, expected, fault, status)


@pytest.mark.slow
@FAULTS
def test_a_fault_before_any_change_of_the_file_system_changes_nothing(
    tmp_path, undisturbed, fault, status
):
    expected, changes = undisturbed
    for first in range(1, changes + 1):
        check(tmp_path, first, expected, fault, status)
