"""A command that a recipe or torchrun started ends with it, also when that is killed and cannot pass anything on."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT = "ASRTOOL_PARENT"  # process that this command must not outlive; unset where a user typed it
PR_SET_PDEATHSIG = 1


def follow_parent() -> None:
    """Let the system kill this process when the parent that set ASRTOOL_PARENT dies (Linux only)."""
    parent = int(os.environ.pop(PARENT, "0"))  # the variable is for this process, not for its children
    if parent == 0 or not sys.platform.startswith("linux"):
        return
    if os.getppid() == parent:  # else a shell stands in between
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not os.path.exists(f"/proc/{parent}"):  # it died before that
        os._exit(1)
