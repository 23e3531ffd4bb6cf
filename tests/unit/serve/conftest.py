"""What is served in the tests; files that import tests.toy_service are skipped where the extra
`serve` is missing.
"""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def live(toy_stream):
    """A model that streams."""
    from tests.toy_service import toy_served

    return toy_served(toy_stream / "exp")


@pytest.fixture(scope="session")
def whole(toy):
    """A model that does not."""
    from tests.toy_service import toy_served

    return toy_served(toy / "exp")
