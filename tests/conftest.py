"""What every test run needs.

--import MODULE and --import-from FOLDER load components from outside the package before tests are
collected, so that the contracts (tests/contracts) try these too.
"""

import signal

from asrtool import imports

# A shell starts background jobs with Ctrl-C ignored, and what is ignored stays so in every child:
# commands that tests interrupt would not listen.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser):
    parser.addoption("--import", dest="own_modules", action="append", default=[])
    parser.addoption("--import-from", dest="own_folders", action="append", default=[])


def pytest_configure(config):
    imports.load(config.option.own_modules, config.option.own_folders)
