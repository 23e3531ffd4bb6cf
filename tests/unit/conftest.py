"""A toy experiment, trained once, for the commands that use one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import toy_experiment, toy_qifusion


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with data, dump, vocab, exp, train.yaml and decode.yaml; tests leave it as it is."""
    return toy_experiment.make(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def toy_stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a Qifusion-Net with two accents, which can stream."""
    return toy_qifusion.make(tmp_path_factory.mktemp("toy_stream"))
