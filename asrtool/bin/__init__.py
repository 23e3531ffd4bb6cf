"""The commands: one module each, with `main(argv)`. Run as `python -m asrtool.bin.<name>` or
`asrtool <name>`.

This file also decides how every command ends, because Python imports it before any of them. An
error that asrtool raises deliberately, or that the system raises (a missing file, a full disk), is
printed as one sentence. Ctrl-C and a closed pipe print nothing. Any other error is a bug and shows
its traceback; ASRTOOL_TRACEBACK=1 shows the traceback of every error. If several ranks fail with
the same error, only the first one prints it.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType

from asrtool import log
from asrtool.errors import UserError
from asrtool.system import processes

PACKAGE = Path(__file__).parents[1]
LOST = "lost the connection to another rank, which ended or cannot be reached"


def explain(error: BaseException) -> str | None:
    """The sentence of an expected error; empty to end silently, None for a bug."""
    if isinstance(error, KeyboardInterrupt | BrokenPipeError):
        return ""
    if isinstance(error, OSError) and error.strerror:
        return (
            f"{error.strerror}: {error.filename}" if error.filename is not None else error.strerror
        )
    if isinstance(error, RuntimeError) and "Connection closed by peer" in str(error):
        return LOST
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, UserError):
        return str(error)
    if type(error) in (ValueError, LookupError) and frames and _raised_here(frames[-1]):
        return f"{error} (ASRTOOL_TRACEBACK=1 shows where)"
    return None


def _raised_here(frame: traceback.FrameSummary) -> bool:
    """Whether asrtool raised the error by a `raise` of its own: it checked an argument. `int("x")`
    fails in a line of asrtool too, but there it is a bug.
    """
    return Path(frame.filename).is_relative_to(PACKAGE) and (frame.line or "").startswith("raise ")


def end(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """`sys.excepthook` of the commands; the exit status stays Python's own (1; 130 after
    Ctrl-C).
    """
    sentence = explain(error)
    rank = os.environ.get("RANK", "0")
    # torchrun ends all ranks when one failed: who waits lets the one that knows more speak alone
    if sentence != "":
        time.sleep(20 if sentence == LOST else 0 if rank == "0" else 10)
    if sentence is None or os.environ.get("ASRTOOL_TRACEBACK"):
        sys.__excepthook__(kind, error, trace)
    elif sentence:
        name = f"{Path(sys.argv[0]).stem}{'' if rank == '0' else f' [rank {rank}]'}"
        print(f"{name}: {log.shown(sentence)}", file=sys.stderr)
    # the interpreter's last flush must not complain about the same pipe
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


sys.excepthook = end
log.guard()
processes.follow_parent()
