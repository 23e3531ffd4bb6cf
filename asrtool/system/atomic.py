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
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


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
