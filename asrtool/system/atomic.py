"""Files and folders that are there whole or not at all, whatever moment the machine dies at or the
disk is full.

They are written under a temporary name beside their place, flushed to the disk and renamed. Where
several processes may write the same file, they hold `stamp.locked` meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def aside(path: Path) -> Path:
    """The temporary name of a file or folder."""
    return path.with_name(path.name + ".tmp")


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Put a small text file (UTF-8) in the place of `path`; `errors`: of encoding, as `open` takes
    it.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors, newline="\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the temporary name to write to; the file takes the place of `path` when the block ends
    without an error.
    """
    temporary = aside(path)
    try:
        yield temporary
        put(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def put(new: Path, path: Path) -> None:
    """Flush the file `new` to the disk and give it the place of `path`."""
    sync(new)
    os.replace(new, path)


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder to write to; it takes the place of `out` when the block ends without an
    error. What an earlier block left behind is removed.
    """
    new = aside(out)
    try:
        discard(new)
        new.mkdir(parents=True)
        yield new
        replace_folder(new, out)
    except BaseException:
        with contextlib.suppress(OSError):
            discard(new)
        raise


def replace_folder(new: Path, out: Path) -> None:
    """Put folder `new` in the place of `out`; whatever moment the machine dies at, one whole folder
    is left: `new`, `out`, or the former one as `<out>.old`."""
    sync_folder(new)
    old = out.with_name(out.name + ".old")
    discard(old)
    try:
        if out.exists():
            os.rename(out, old)
        os.rename(new, out)
    except BaseException:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    sync(out.parent)
    with contextlib.suppress(OSError):  # the next one who writes here removes it
        discard(old)


def bring_back(out: Path) -> None:
    """Give a folder its name again where a kill came between the two renames of
    `replace_folder`.
    """
    old = out.with_name(out.name + ".old")
    if old.exists() and not out.exists():
        os.rename(old, out)


def remove_folder(path: Path) -> None:
    """Remove a folder that must not be seen half removed: it loses its name first."""
    doomed = aside(path)
    os.rename(path, doomed)
    discard(doomed)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush all that lies in a folder to the disk."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or path.is_dir():
            sync(path)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some file systems of networks have no such call for folders
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)
