"""A toy experiment, trained once, for the commands that use one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import toy_experiment, toy_qifusion
from tests.shared import once


@pytest.fixture(scope="session")
def toy(request: pytest.FixtureRequest) -> Path:
    """Folder with data, dump, vocab, exp, train.yaml and decode.yaml; tests leave it as it is."""
    return once(request, "toy", toy_experiment.make)


@pytest.fixture(scope="session")
def toy_stream(request: pytest.FixtureRequest) -> Path:
    """The same of a Qifusion-Net with two accents, which can stream."""
    return once(request, "toy_stream", toy_qifusion.make)
