"""Console lines and `log.jsonl`, written by rank 0 only; warnings of other ranks carry their
number.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path

logger = logging.getLogger("asrtool")


def set_up(verbose: bool = False) -> None:
    """Send the package's messages to stderr: all of rank 0, warnings of the others. Called by the
    commands.
    """
    rank = int(os.environ.get("RANK", "0"))
    handler = logging.StreamHandler(sys.stderr)
    suffix = "" if rank == 0 else f" [rank {rank}]"
    handler.setFormatter(logging.Formatter(f"%(asctime)s{suffix} %(message)s", datefmt="%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO if rank == 0 else logging.WARNING)


def warn_once(message: str, *args: object) -> None:
    """A warning that every rank comes to by itself: the first one speaks for all."""
    if os.environ.get("RANK", "0") == "0":
        logger.warning(message, *args)


def first_few(names: Iterable[str], count: int = 10) -> str:
    """The first names as a message lists them, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


class JsonLines:
    """Appends one JSON object a line; each carries the wall-clock time. A line torn by a kill is
    completed first.
    """

    def __init__(self, path: Path) -> None:
        torn = path.exists() and path.stat().st_size > 0 and path.read_bytes()[-1:] != b"\n"
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed by `close`
        if torn:
            self._file.write("\n")

    def write(self, **values: object) -> None:
        self._file.write(
            json.dumps({"time": round(time.time(), 3), **values}, ensure_ascii=False) + "\n"
        )
        self._file.flush()

    def close(self) -> None:
        self._file.close()
