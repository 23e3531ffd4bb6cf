"""Fixtures that tests of several recipes share."""

from __future__ import annotations

import logging

import pytest

from asrtool.log import logger


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What asrtool says."""
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "asrtool")
    return caplog
