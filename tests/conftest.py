"""What every test run needs.

--import MODULE and --import-from FOLDER load components from outside the package before tests are
collected, so that the contracts (tests/contracts) try these too.
"""

import logging
import signal
from pathlib import Path

import pytest

from asrtool import imports
from asrtool.log import logger

# Files of more than half a minute, the longest first: processes that share the tests begin with
# them, so that none is left with a long one at the end.
LONGEST = (
    "recipes/test_documents.py",
    "recipes/test_interruptions.py",
    "strangers/test_blstm.py",
    "unit/bin/test_stream.py",
    "unit/bin/test_train_keyframe.py",
    "recipes/test_minis.py",
    "recipes/test_configs.py",
    "unit/trainer/test_ranks.py",
    "unit/trainer/test_fsdp.py",
    "unit/bin/test_stored_frames.py",
    "unit/tools/test_benchmarks.py",
    "recipes/test_smoke.py",
    "recipes/test_speech_llm.py",
)

left_out = set()  # interop tests that were deselected, which the summary says

# A shell starts background jobs with Ctrl-C ignored, and what is ignored stays so in every child:
# commands that tests interrupt would not listen.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """The log of asrtool."""
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, "asrtool")
    return caplog


def pytest_addoption(parser):
    parser.addoption("--import", dest="own_modules", action="append", default=[])
    parser.addoption("--import-from", dest="own_folders", action="append", default=[])


def pytest_configure(config):
    imports.load(config.option.own_modules, config.option.own_folders)
    # xdist would begin with the files that hold the most tests
    config.option.loadscopereorder = False


def pytest_deselected(items):
    left_out.update(item.nodeid for item in items if item.get_closest_marker("interop"))


def pytest_terminal_summary(terminalreporter, config):
    asked = config.option.markexpr.replace("not interop", "")
    if left_out and "interop" not in asked:
        terminalreporter.write_line(
            f"{len(left_out)} tests with other programs were left out: tests/run.sh -m interop"
        )


def pytest_collection_modifyitems(items):
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))
