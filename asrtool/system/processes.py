"""What a process owes its system: to end with the command that started it, and to give back what it
has freed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT = "ASRTOOL_PARENT"  # process that this command must not outlive; unset where a user typed it
PR_SET_PDEATHSIG = 1


def follow_parent() -> None:
    """Let the system kill this process when the parent that set ASRTOOL_PARENT dies (Linux
    only).
    """
    # the variable is for this process, not for its children
    parent = int(os.environ.pop(PARENT, "0"))
    if parent == 0 or not sys.platform.startswith("linux"):
        return
    if os.getppid() == parent:  # else a shell stands in between
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not os.path.exists(f"/proc/{parent}"):  # it died before that
        os._exit(1)


def give_back_memory() -> None:
    """Let glibc return freed memory. It keeps pieces of many sizes otherwise, and a long run looks
    as if it leaked.
    """
    trim = (
        getattr(ctypes.CDLL(None), "malloc_trim", None)
        if sys.platform.startswith("linux")
        else None
    )
    if trim is not None:
        trim(0)
