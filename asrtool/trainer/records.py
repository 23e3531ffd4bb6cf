"""Records of files: pointers, and sizes and SHA-256 to compare files with.

A file is torn if it is missing or does not match its record. A file that the system cannot read (a
broken disk, a lost server, no permission) is not torn: it may be intact, so it is never overwritten
or deleted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from asrtool.errors import UserError
from asrtool.system import atomic

Facts = Callable[[Path], dict[str, object]]


class TornError(UserError):
    """A file is missing, or differs from what was written."""


def point(folder: Path, name: str, target: Path, **facts: object) -> None:
    """Write the pointer `<folder>/<name>.json`."""
    atomic.write_text(folder / f"{name}.json", json.dumps({"path": target.name, **facts}) + "\n")


def pointer(folder: Path, name: str) -> dict | None:
    """The content of the pointer `<folder>/<name>.json`; None if it is missing or damaged."""
    try:
        content = read(folder / f"{name}.json")
    except TornError:
        return None
    return content if isinstance(content.get("path"), str) else None


def note(file: Path) -> None:
    """Write size and SHA-256 of a file of weights to `<stem>.json` beside it."""
    point(file.parent, file.stem, file, **fingerprint(file))


def damage(file: Path) -> str | None:
    """How a file of weights differs from its record; None if it does not, or has no record."""
    noted = pointer(file.parent, file.stem)
    if noted is None or "sha256" not in noted:
        return None
    try:
        compare(file, noted)
    except TornError as error:
        return str(error)
    return None


def fingerprint(file: Path) -> dict[str, object]:
    """Size in bytes and SHA-256 of a file."""
    with open(file, "rb") as stream:
        return {**size(file), "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def size(file: Path) -> dict[str, object]:
    return {"size": file.stat().st_size}


def compare(file: Path, noted: Mapping[str, object], facts: Facts = fingerprint) -> None:
    """Raise `TornError` if a file does not match its record, `UserError` if it cannot be read."""
    try:
        actual = facts(file)
    except FileNotFoundError:
        raise TornError(f"{file.name} is missing") from None
    except OSError as error:
        raise unreadable(file, error) from error
    if actual["size"] != noted.get("size"):
        difference = f"its size is {actual['size']} bytes, expected {noted.get('size')}"
        raise TornError(f"{file.name} is not what was written ({difference})")
    if any(noted.get(name) != value for name, value in actual.items()):
        raise TornError(f"{file.name} is not what was written (its SHA-256 does not match)")


def read(file: Path) -> dict:
    """The object in a JSON file. Raises `TornError` if it is missing or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TornError(f"{file.name} is missing") from None
    except OSError as error:
        raise unreadable(file, error) from error
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise TornError(f"{file.name} is damaged")
    return content


def unreadable(file: Path, error: OSError) -> UserError:
    return UserError(
        f"{file} cannot be read: {error.strerror or error}. It was not changed; run the same "
        "command again when it can be read, or move it away"
    )
