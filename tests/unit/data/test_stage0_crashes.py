"""Stage 0 that is killed, or finds the disk full, before a change that it makes to the file system:
the same command afterwards gives the same bytes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import corpus
from asrtool.types import Utterance
from tests.toy_crashes import DEATH, Faults, child, die, full

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
NEVER = 1 << 30


def sets(folder: Path) -> dict[str, corpus.Source]:
    """Two sets of two recordings, one of which has an utterance that is left out."""

    def source(name: str, left_out: tuple[str, ...]) -> corpus.Source:
        rows = [
            Utterance(
                id=f"{name}-{number}",
                audio=str(folder / f"{number}.wav"),
                duration=0.1,
                text="A B",
                speaker=name,
            )
            for number in range(2)
        ]
        return corpus.Source(lambda _: corpus.CorpusSet(rows, left_out=list(left_out)))

    return {"train": source("ann", ("ann-9: gone",)), "test": source("ben", ())}


def write(folder: Path, out: Path, first: int, fault: Callable) -> int:
    faults = Faults(first, fault)
    corpus.write_sets(out, sets(folder))
    (out.parent / "changes").write_text(str(faults.count))
    return 0


def content(out: Path) -> dict[str, bytes]:
    """Of every file; locks may stay."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], int]:
    """The folder of the recordings, what stage 0 makes of them, and how many changes that takes."""
    folder = tmp_path_factory.mktemp("audio")
    for number in range(2):
        soundfile.write(folder / f"{number}.wav", np.zeros(1600), 16000)
    assert child(lambda: write(folder, folder / "data", NEVER, die)) == 0
    return folder, content(folder / "data"), int((folder / "changes").read_text())


@pytest.mark.parametrize(("fault", "status"), [(die, DEATH), (full, 1)], ids=["killed", "full"])
def test_the_same_command_afterwards_gives_the_same_bytes(tmp_path, undisturbed, fault, status):
    folder, expected, count = undisturbed
    assert len(expected) > 8 and count > 20
    for first in range(1, count + 1, 9):
        out = tmp_path / str(first) / "data"
        ended = child(lambda first=first, out=out: write(folder, out, first, fault))
        assert ended == status, first
        assert child(lambda out=out: write(folder, out, NEVER, die)) == 0
        assert content(out) == expected, first
