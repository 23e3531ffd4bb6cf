"""What was written and what lies there now: pointers, and files whose size and SHA-256 were noted.

Torn is what is missing or is not what was noted. What the system does not read (a broken disk, a
lost server, no permission) is not torn: it may be whole, and nobody may train over it or delete it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from asrtool.system import atomic

Facts = Callable[[Path], dict[str, object]]


class CheckpointError(ValueError):
    """Weights that are missing, torn, or do not fit the model; or that the system does not read or
    write.
    """


class TornError(CheckpointError):
    """A file that is not what was written."""


def point(folder: Path, name: str, target: Path, **facts: object) -> None:
    """Write the pointer `<folder>/<name>.json`."""
    atomic.write_text(folder / f"{name}.json", json.dumps({"path": target.name, **facts}) + "\n")


def pointer(folder: Path, name: str) -> dict | None:
    """What `<folder>/<name>.json` says; None where it is missing or damaged."""
    try:
        content = read(folder / f"{name}.json")
    except TornError:
        return None
    return content if isinstance(content.get("path"), str) else None


def note(file: Path) -> None:
    """Write size and SHA-256 of a file of weights beside it, into `<its stem>.json`."""
    point(file.parent, file.stem, file, **fingerprint(file))


def damage(file: Path) -> str | None:
    """How a file of weights is not what was noted, or None, also where nothing was noted."""
    noted = pointer(file.parent, file.stem)
    if noted is None or "sha256" not in noted:
        return None
    try:
        compare(file, noted)
    except TornError as error:
        return str(error)
    return None


def fingerprint(file: Path) -> dict[str, object]:
    """Size and SHA-256."""
    with open(file, "rb") as stream:
        return {**size(file), "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def size(file: Path) -> dict[str, object]:
    return {"size": file.stat().st_size}


def compare(file: Path, noted: Mapping[str, object], facts: Facts = fingerprint) -> None:
    """Raise a `TornError` where the facts of a file are not those that were noted when it was
    written.
    """
    try:
        actual = facts(file)
    except FileNotFoundError:
        raise TornError(f"{file.name} is missing") from None
    except OSError as error:
        raise unreadable(file, error) from error
    if actual["size"] != noted.get("size"):
        what = f"it has {actual['size']} bytes, expected {noted.get('size')}"
        raise TornError(f"{file.name} is not what was written ({what})")
    if any(noted.get(name) != value for name, value in actual.items()):
        raise TornError(f"{file.name} is not what was written (its SHA-256 is another)")


def read(file: Path) -> dict:
    """The object in a JSON file."""
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


def unreadable(file: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"{file} cannot be read: {error.strerror or error}. It was left as it is; run the same "
        "command again when it "
        "can be read, or move it away"
    )
