"""Files of one JSON object a line, plain or compressed by gzip."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from asrtool.data import tree
from asrtool.errors import UserError


def rows(path: Path) -> Iterator[tuple[str, dict]]:
    """`<file>:<line>` and the object of each line that is not blank.

    Raises `UserError` for a line that is no JSON object, and for a damaged file.
    """
    for where, line in lines(path):
        try:
            row = json.loads(line)
        except ValueError as error:
            hint = "; the file is a JSON list" if line.startswith("[") else ""
            raise UserError(
                f"{where}: expected one JSON object a line, got '{line[:40]}' ({error}){hint}"
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected a JSON object, got '{line[:40]}'")
        yield where, row


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """`<file>:<line>` and the text of each line that is not blank."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(tree.need(path), "rb") as stream:
            for number, raw in enumerate(stream, 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError:
                    raise UserError(
                        f"{path}:{number}: expected UTF-8; convert it with iconv"
                    ) from None
                if line:
                    yield f"{path}:{number}", line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: damaged or incomplete ({error}); copy it again") from None
