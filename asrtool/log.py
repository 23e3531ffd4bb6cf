"""Console messages and JSON-lines logs of rank 0; warnings of other ranks carry their number.

Ids, names and texts may contain any character: `shown` escapes those that control a terminal.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

logger = logging.getLogger("asrtool")
# control characters (C0 without tab and line feed, delete, C1), and bytes that are not UTF-8
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record))


def set_up(verbose: bool = False) -> None:
    """Send the package's messages to stderr: all of rank 0, warnings of the others.

    The commands call it; as a library, asrtool leaves logging to the application.
    """
    # From torchrun's environment: logging starts before there is a process group.
    rank = int(os.environ.get("RANK", "0"))
    handler = logging.StreamHandler(sys.stderr)
    suffix = "" if rank == 0 else f" [rank {rank}]"
    handler.setFormatter(_Formatter(f"%(asctime)s{suffix} %(message)s", datefmt="%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.DEBUG if verbose else logging.INFO if rank == 0 else logging.WARNING)


def warn_once(message: str, *args: object) -> None:
    """Log a warning that applies to every rank, on rank 0 only."""
    if os.environ.get("RANK", "0") == "0":
        logger.warning(message, *args)


def first_few(names: Iterable[str], count: int = 10) -> str:
    """The first `count` names for a message, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 utterance`, `2 utterances`: how messages count. many: of what takes no `s`."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"


class JsonLines:
    """Appends JSON objects, one per line, with the wall-clock time. A line that a killed process
    left incomplete is ended first, so that it does not spoil the next one.
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


# -- terminals ---------------------------------------------------------------


def shown(text: str) -> str:
    r"""The text with control characters escaped, as \x1b, and bytes that are not UTF-8, as \xff.

    Tabs and line feeds are kept.
    """
    return text if text.isprintable() else STEERING.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0xD800:
        return f"\\x{code:02x}"
    # U+DC80 to U+DCFF is Python's surrogateescape for a byte; others are unpaired surrogates
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


class Terminal:
    """A text stream to a terminal that escapes its output by `shown`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def guard() -> None:
    """Escape control characters on standard output if it is a terminal.

    In files and pipes, bytes that are not UTF-8 are written unchanged.
    """
    stream = sys.stdout
    if stream is None or isinstance(stream, Terminal):
        return
    if stream.isatty():
        sys.stdout = Terminal(stream)
    elif hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="surrogateescape")
