"""Keep the columns of a large data directory in a file, which all processes of a machine map.

It is `<folder>/.columns`, or is with temporary files if the data directory is not writable. One
process reads the tables and writes it, while the others wait. It counts only for the tables that it
was made from: as long as their sizes, times and inode numbers stay, or their contents do (of a
copied folder). Its layout is that of safetensors: the size of a JSON object, the object with type,
shape and place of each array, the arrays.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from asrtool.data.kaldi import form
from asrtool.data.kaldi.columns import Arrays, Columns
from asrtool.log import logger, plural
from asrtool.system import atomic, stamp
from asrtool.system.processes import give_back_memory

VERSION = 1  # raise it when the arrays mean something else
LARGE = 1 << 24  # bytes of tables; smaller ones are read in a tenth of a second
RECENT = 2.0  # seconds in which a file may change again and keep its time
ALIGNMENT = 64  # bytes
NAMES = {"u1": "U8", "u4": "U32", "i4": "I32", "i8": "I64", "f8": "F64"}
TYPES = {name: np.dtype(f"<{code}") for code, name in NAMES.items()}


def columns(folder: Path, make: Callable[[], Columns]) -> Columns:
    """The columns of a data directory: from its file, or else made and, if large, written to it."""
    if sum((folder / name).stat().st_size for name in form.names(folder)) < LARGE:
        return make()
    for path in (folder / stamp.COLUMNS, _elsewhere(folder)):
        if path is not None and (found := _load(path, folder)) is not None:
            return found
        if path is not None and _is_writable(path.parent):
            return _kept(path, folder, make)
    return make()


def _kept(path: Path, folder: Path, make: Callable[[], Columns]) -> Columns:
    with stamp.locked(path, wait=True) as is_locked:
        # another process may have written it meanwhile
        if (found := _load(path, folder)) is not None:
            return found
        before = _state(folder)
        made = make()
        if not is_locked or _state(folder) != before:
            return made
        try:
            _save(path, made.arrays(), before, _digest(folder))
        except OSError as error:
            reason = (error.strerror or "cannot be written").lower()
            logger.warning("%s: %s; each process holds the tables by itself", path, reason)
            return made
        logger.info("%s: %s, kept in %s", folder, plural(len(made), "utterance"), path)
    # mapped instead of made, so that this process too shares it
    if (found := _load(path, folder)) is None:
        return made
    del made
    give_back_memory()
    return found


# -- where -----------------------------------------------------------------


def _elsewhere(folder: Path) -> Path | None:
    """The file of a data directory in this user's own folder of temporary files, if it has one."""
    own = Path(tempfile.gettempdir()) / f"asrtool-{os.getuid()}"
    try:
        own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
    except OSError:
        return None
    # anybody may make a folder of this name there
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        return None
    name = hashlib.sha256(os.path.realpath(folder).encode(errors="surrogateescape")).hexdigest()
    return own / f"{name[:16]}{stamp.COLUMNS}"


def _is_writable(folder: Path) -> bool:
    # os.access says nothing about full or read-only network disks; writing a file does
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


# -- for which tables ------------------------------------------------------


def _state(folder: Path) -> list[list[int | str]]:
    """Name, size, times and number of each table: equal as long as nobody writes them."""
    found = [(name, (folder / name).stat()) for name in form.names(folder)]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino] for name, s in found]


def _is_settled(state: list[list[int | str]]) -> bool:
    """Whether another change of a file would have given it another time."""
    return max(times[3] for times in state) < (time.time() - RECENT) * 1e9


def _digest(folder: Path) -> str:
    """Of the content of all tables, which also a copy of the folder has."""
    total = hashlib.sha256()
    for name in form.names(folder):
        total.update(f"{name}\n{stamp.digest(folder / name)}\n".encode())
    return total.hexdigest()


# -- the file --------------------------------------------------------------


def _save(path: Path, arrays: Arrays, state: list[list[int | str]], digest: str) -> None:
    about = {"version": VERSION, "digest": digest, "state": state if _is_settled(state) else None}
    head: dict[str, dict] = {"__metadata__": {"columns": json.dumps(about)}}
    # by the size of their items, so that each is aligned, without gaps
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    end = 0
    for name, array in ordered:
        start, end = end, end + array.nbytes
        kind = NAMES[array.dtype.str[1:]]
        head[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(head).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    with atomic.replacing(path) as temporary, open(temporary, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for _, array in ordered:
            stream.write(np.ascontiguousarray(array).data)


def _load(path: Path, folder: Path) -> Columns | None:
    """The columns in a file; None if there is none, or it is not of the present tables."""
    try:
        with open(path, "rb") as stream:
            content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        start = 8 + int.from_bytes(content[:8], "little")
        head = json.loads(content[8:start])
        about = json.loads(head.pop("__metadata__")["columns"])
        end = max(entry["data_offsets"][1] for entry in head.values())
        if about["version"] != VERSION or start + end != len(content):
            return None
        if about["state"] != _state(folder) and about["digest"] != _digest(folder):
            return None
        return Columns.of_arrays(
            {name: _array(content, start, entry) for name, entry in head.items()}
        )
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _array(content: mmap.mmap, start: int, entry: dict) -> np.ndarray:
    kind, (first, last) = TYPES[entry["dtype"]], entry["data_offsets"]
    if first == last:  # which NumPy refuses to map
        return np.empty(0, kind)
    return np.frombuffer(content, kind, (last - first) // kind.itemsize, start + first)
