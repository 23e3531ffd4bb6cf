"""Write files and folders atomically: after a crash or on a full disk they are complete or absent.

They are written under a temporary name in the same folder, flushed to the disk and renamed. If
several processes may write the same file, they hold `stamp.locked`.
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
    """Replace `path` by a small text file (UTF-8); `errors`: as in `open`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=errors, newline="\n")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to, which is renamed to `path` after the block."""
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
    """Flush the file `new` to the disk and rename it to `path`."""
    # flushed first: after a power failure, a rename may be on the disk without the data
    sync(new)
    os.replace(new, path)


@contextmanager
def replacing_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder, which is renamed to `out` after the block, unless it raises.

    Leftovers of an earlier block are removed.
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
    """Replace `out` by the folder `new`.

    After a crash at any moment one complete folder exists: `new`, `out`, or the former one as
    `<out>.old`.
    """
    sync_folder(new)
    old = out.with_name(out.name + ".old")
    discard(old)
    try:
        # a folder cannot be replaced by a single rename; `bring_back` repairs a kill in between
        if out.exists():
            os.rename(out, old)
        os.rename(new, out)
    except BaseException:
        if old.exists() and not out.exists():
            os.rename(old, out)
        raise
    sync(out.parent)
    with contextlib.suppress(OSError):  # the next writer removes it
        discard(old)


def bring_back(out: Path) -> None:
    """Restore a folder if `replace_folder` was killed between its two renames."""
    old = out.with_name(out.name + ".old")
    if old.exists() and not out.exists():
        os.rename(old, out)


def remove_folder(path: Path) -> None:
    """Remove a folder, renaming it first so that it is never seen half removed."""
    doomed = aside(path)
    os.rename(path, doomed)
    discard(doomed)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Flush a folder and everything in it to the disk."""
    for path in (*folder.rglob("*"), folder):
        if path.is_file() or path.is_dir():
            sync(path)


def sync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # some network file systems do not support this for folders
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(handle)
