"""Console lines and `log.jsonl`, written by rank 0 only; warnings of other ranks carry their
number. Ids, names and texts can contain any character: `shown` escapes those that control a
terminal.
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
    """Send the package's messages to stderr: all of rank 0, warnings of the others. Called by the
    commands.
    """
    rank = int(os.environ.get("RANK", "0"))
    handler = logging.StreamHandler(sys.stderr)
    suffix = "" if rank == 0 else f" [rank {rank}]"
    handler.setFormatter(_Formatter(f"%(asctime)s{suffix} %(message)s", datefmt="%H:%M:%S"))
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


def plural(count: int, noun: str, many: str | None = None) -> str:
    """`1 utterance`, `2 utterances`: how messages count. many: of what takes no `s`."""
    return f"{count} {noun if count == 1 else many or noun + 's'}"


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


# -- terminals ---------------------------------------------------------------


def shown(text: str) -> str:
    r"""The text with control characters escaped as \x1b, and bytes of names that are not UTF-8 as
    \xff.

    Tabs and line feeds stay.
    """
    return text if text.isprintable() else STEERING.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0xD800:
        return f"\\x{code:02x}"
    # Python's stand-in for a byte, or half of a character
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


class Terminal:
    """A text stream to a terminal; what is written goes through `shown`."""

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
    """Escape control characters on standard output where it is a terminal.

    In files and pipes, bytes of names that are not UTF-8 stay as they were.
    """
    stream = sys.stdout
    if stream is None or isinstance(stream, Terminal):
        return
    if stream.isatty():
        sys.stdout = Terminal(stream)
    elif hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="surrogateescape")
