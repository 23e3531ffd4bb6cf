"""Fixtures that tests of several recipes share."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from asrtool.log import logger

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """What asrtool says."""
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "asrtool")
    return caplog


@pytest.fixture(scope="session")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, as a fresh clone would be, in which recipes may write."""
    copy = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\n")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="session")
def tiny(tree: Path) -> Path:
    """The project with the tiny miniature trained, decoded and scored: it learns 40 utterances by
    heart.
    """
    pytest.importorskip(
        "espeakng_loader", reason="the miniature needs espeak-ng: pip install -e '.[mini]'"
    )
    run_in(
        tree,
        "./run.sh librispeech --mini true --mini-size tiny --test-sets train --train-args "
        "'trainer.epochs=120"
        " trainer.validate_every=240 data.batch.seconds=30 optim.lr=1e-3"
        " model.encoder.dropout=0 data.augment.spec_augment=null model.encoder.num_layers=3"
        " model.encoder.dim=96 model.encoder.ffn_dim=192"
        " model.encoder.downsamplers.0.channels=8'",
    )
    return tree


@pytest.fixture(scope="session")
def trained(tree: Path) -> Path:
    """The project with the miniature trained, decoded and scored at its full size: minutes."""
    shutil.rmtree(tree / "egs/librispeech/exp/mini", ignore_errors=True)
    run_in(tree, "./run.sh librispeech --mini true")
    return tree


def run_in(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A shell command, run as a user would in `folder` with the environment of the tests."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done
