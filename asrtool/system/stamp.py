"""Skip stages that are up to date: `.stage.json` records the inputs and options of a folder.

    with stamp.building(out, "features", inputs=[data], options={"fbank": ...}) as target:
        if target is None:            # up to date: a line is logged, nothing to do
            return
        ...write into target...       # a temporary sibling, renamed to `out` when the block ends
                                      without an error

An error or Ctrl-C leaves nothing behind; the next run removes leftovers of a killed stage
(`<out>.tmp`, `<out>.old`, `<out>.lock`). While a folder is being written, `<out>.lock` excludes
other processes; the system releases it when its owner dies, so no lock is ever stale. File times
are ignored: text files are compared by content, archives and audio by name and size.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.system import atomic

NAME = ".stage.json"
COLUMNS = ".columns"  # what asrtool/data/kaldi/cache.py keeps of a folder's tables: no input
VERSION = 1  # raise it when stages write something else from the same inputs
TAKEN = {errno.EACCES, errno.EAGAIN}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# files too large to hash: a change of content without a change of size is not noticed
BY_SIZE = {".ark", ".wav", ".flac", ".opus", ".ogg", ".mp3", ".sph", ".tar", ".gz", ".safetensors"}


class StageError(UserError):
    """A folder cannot be written at present; the message says why."""


def digest(path: Path) -> str:
    """The digest of a file's content (audio and archives: its size), or of a whole folder."""
    total = hashlib.sha256()
    if path.is_dir():
        for name, file, size in _walk(str(path), "", frozenset()):
            base = os.path.basename(name)
            if base != NAME and not base.startswith(COLUMNS):
                total.update(name.encode(errors="surrogateescape"))
                _add(total, file, size)
    else:
        total.update(path.name.encode(errors="surrogateescape"))
        _add(total, str(path), os.path.getsize(path))
    return total.hexdigest()[:16]


def _walk(folder: str, name: str, linked: frozenset[str]) -> Iterator[tuple[str, str, int]]:
    """Relative path and size of every file, sorted by name; a corpus may have a million files.

    Links to folders are followed; cycles end.
    """
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        if entry.is_file():
            yield name + entry.name, entry.path, entry.stat().st_size
        elif entry.is_dir() and (
            not entry.is_symlink() or (real := os.path.realpath(entry.path)) not in linked
        ):
            yield from _walk(
                entry.path,
                f"{name}{entry.name}/",
                linked | {real} if entry.is_symlink() else linked,
            )


def _add(total: hashlib._Hash, path: str, size: int) -> None:
    if os.path.splitext(path)[1].lower() in BY_SIZE:
        total.update(str(size).encode())
    else:
        with open(path, "rb") as stream:
            total.update(hashlib.file_digest(stream, "sha256").digest())


def describe(
    stage: str,
    inputs: Iterable[Path],
    options: Mapping[str, object],
    known: dict[Path, str] | None = None,
) -> dict:
    """The content of a stamp: stage, version, options and the digest of each input.

    known: digests computed before.
    """
    known = {} if known is None else known
    digests: dict[str, str] = {}
    for path in inputs:  # inputs with the same name are joined, so that all of them count
        if path not in known:
            known[path] = digest(path)
        digests[path.name] = "+".join(filter(None, (digests.get(path.name), known[path])))
    made = {"stage": stage, "version": VERSION, "options": options, "inputs": digests}
    return json.loads(json.dumps(made, default=str))  # as it will be read back


def read(out: Path) -> dict | None:
    """The stamp of a folder; None if it is missing or damaged."""
    return load(out / NAME)


def load(path: Path) -> dict | None:
    """A stamp by its own path, such as one beside a file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


@contextmanager
def building(
    out: Path,
    stage: str,
    inputs: Iterable[Path] = (),
    options: Mapping[str, object] | None = None,
    force: bool = False,
    known: dict[Path, str] | None = None,
) -> Iterator[Path | None]:
    """Yield a fresh folder to write to, or None if `out` is up to date; `force` always builds.

    Folders made from the same inputs share `known`, so that each input is read once.
    """
    out = Path(out)
    now = describe(stage, inputs, options or {}, known)
    target, old = atomic.aside(out), out.with_name(out.name + ".old")
    if read(out) == now and not force and not target.exists() and not old.exists():
        logger.info("%s: %s is up to date", stage, out)
        sweep(out)
        yield None
        return
    with locked(out):
        atomic.bring_back(out)
        for leftover in (target, old):
            atomic.discard(leftover)
        # read again under the lock: another process may have built it meanwhile
        before = read(out)
        if before == now and not force:
            logger.info("%s: %s is up to date", stage, out)
            yield None
            return
        if before is not None and before != now:
            logger.info(
                "%s: %s is made again, because %s changed", stage, out, difference(before, now)
            )
        with atomic.replacing_folder(out) as target:
            yield target
            # the stamp comes last, after the block: it makes the folder complete
            (target / NAME).write_text(
                json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[bool]:
    """Lock `path`; if another process holds the lock, wait or raise `StageError`.

    Yields False if the file system does not support locks. A full disk raises `StageError`.
    """
    lock = _lock(path)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        stream, is_locked = _take(lock, path, wait)
        with stream:
            try:
                stream.truncate(0)
                stream.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                stream.flush()
                yield is_locked
            finally:
                # removed while it is still locked: whoever waits for this file notices below
                lock.unlink(missing_ok=True)
    except OSError as error:
        if error.errno not in FULL:
            raise
        reason = (error.strerror or "the disk is full").lower()
        raise StageError(
            f"{path}: {reason}; free some disk space, then run the same command again"
        ) from None


def _lock(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _take(lock: Path, path: Path, wait: bool) -> tuple[TextIO, bool]:
    """The open lock file, and whether it is locked."""
    while True:
        stream = open(lock, "a", encoding="utf-8")  # noqa: SIM115    the caller closes it
        try:
            fcntl.lockf(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno not in TAKEN:  # some cluster file systems do not support locks
                logger.warning(
                    "%s cannot be locked (%s); make sure that nothing else writes it",
                    path,
                    error.strerror,
                )
                return stream, False
            stream.close()
            owner = ""
            with suppress(FileNotFoundError):
                owner = lock.read_text(encoding="utf-8").strip()
            owner = owner or "another process"
            raise StageError(
                f"{path} is being written by {owner}; wait until it ends, or stop it"
            ) from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), os.stat(lock)):
                return stream, True
        # The former owner removed the file between `open` and the lock, so this lock excludes
        # nobody. Try again with the new file.
        stream.close()


def sweep(path: Path) -> None:
    """Remove leftovers of a killed process beside `path`: its lock, and the file it was writing.

    Does nothing while a living process holds the lock. Raises nothing: what cannot be removed now
    stays for the next run.
    """
    if not (atomic.aside(path).exists() or _lock(path).exists()):
        return
    with suppress(StageError, OSError), locked(path) as is_locked:
        if is_locked:
            atomic.discard(atomic.aside(path))


def difference(before: Mapping, now: Mapping) -> str:
    """The names of the inputs and options that differ, for messages."""
    if before.get("version") != now["version"] or before.get("stage") != now["stage"]:
        return "its maker"
    changed = []
    for group in ("options", "inputs"):
        old, new = before.get(group, {}), now[group]
        changed += [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(changed) or "something"
