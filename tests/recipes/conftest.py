"""Fixtures shared by the tests of recipes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import warm_python
from tests.shared import alone, once

ROOT = Path(__file__).resolve().parents[2]
LEARN = (
    "./run.sh librispeech --mini true --mini-size tiny --ranks 1 --test-sets train --train-args "
    "'trainer.epochs=30 trainer.validate_every=240 data.batch.seconds=8 optim.lr=2e-3"
    " model.encoder.dropout=0 data.augment.spec_augment=null model.encoder.num_layers=2"
    " model.encoder.dim=96 model.encoder.ffn_dim=192"
    " model.encoder.downsamplers.0.channels=8'"
)


def clone(folder: Path) -> None:
    """Copy the project into `folder`, like a fresh clone."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\n")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project that recipes may write into."""
    copy = tmp_path_factory.mktemp("clone")
    clone(copy)
    return copy


def run_mini(folder: Path, command: str) -> None:
    """A command that makes the miniature, in a new copy of the project."""
    clone(folder)
    run_in(folder, command)


@pytest.fixture(scope="session")
def tiny(request: pytest.FixtureRequest) -> Path:
    """The project with the tiny miniature trained, decoded and scored; it overfits 40 utterances.

    Only tests with the fixture `tiny_alone` may write into it.
    """
    pytest.importorskip(
        "espeakng_loader", reason="the miniature needs espeak-ng: pip install -e '.[mini]'"
    )
    return once(request, "tiny", lambda folder: run_mini(folder, LEARN))


@pytest.fixture
def tiny_alone(tiny: Path) -> Iterator[Path]:
    """`tiny`, locked: no other process runs a test that writes into it."""
    with alone(tiny):
        yield tiny


@pytest.fixture(scope="session")
def trained(request: pytest.FixtureRequest) -> Path:
    """The project with the default miniature trained, decoded and scored; takes minutes."""
    return once(
        request, "trained", lambda folder: run_mini(folder, "./run.sh librispeech --mini true")
    )


def run_in(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """Run a shell command in `folder`, as a user would, with the environment of the tests."""
    environment = {
        **os.environ,
        "PATH": f"{warm_python.folder()}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done
