"""The toy experiment, for programs that use what asrtool makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import toy_experiment
from tests.shared import once


@pytest.fixture(scope="session")
def toy(request: pytest.FixtureRequest) -> Path:
    """As that of tests/unit."""
    return once(request, "toy", toy_experiment.make)
