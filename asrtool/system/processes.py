"""Processes end with the command that started them, and return freed memory to the system."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

# environment variable: the process id that this command must not outlive; unset if a user runs it
PARENT = "ASRTOOL_PARENT"
PR_SET_PDEATHSIG = 1  # option of Linux's prctl: the signal to receive when the parent dies


def follow_parent() -> None:
    """Let Linux kill this process when the parent that set ASRTOOL_PARENT dies."""
    # the variable is for this process, not for its children
    parent = int(os.environ.pop(PARENT, "0"))
    if parent == 0 or not sys.platform.startswith("linux"):
        return
    # with a shell in between, the signal would come from the shell's death
    if os.getppid() == parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not os.path.exists(f"/proc/{parent}"):  # it died before the call
        os._exit(1)


def cores() -> int:
    """Cores that this process may use."""
    # macOS cannot say which those are
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def give_back_memory() -> None:
    """Make glibc return freed memory to the system; without this, a long run seems to leak."""
    trim = (
        getattr(ctypes.CDLL(None), "malloc_trim", None)
        if sys.platform.startswith("linux")
        else None
    )
    if trim is not None:
        trim(0)
