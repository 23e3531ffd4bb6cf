"""Fetch a public archive and unpack it: what was cut goes on, what is damaged or hostile never reaches its place.

The archive arrives under a temporary name and goes on where it stopped (HTTP Range); its SHA-256 is compared where one
is published; it is unpacked beside the goal with Python's "data" filter, which refuses members that point outside, and
renamed when all of it is there.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import os
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path

from tqdm import tqdm

from asrtool.log import logger

BLOCK = 1 << 20
TRIES = 5  # attempts in a row that bring nothing
TIMEOUT = 60.0  # seconds without a byte
BUSY = {429, 500, 502, 503, 504}  # answers that may be another one later
CUT = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class DownloadError(Exception):
    """An archive that cannot be had or used; the message says what to do."""


class _Interrupted(Exception):
    """The connection ended before the file did."""


def fetch(url: str, target: Path, sha256: str | None = None, wait: float = 2.0) -> None:
    """Download `url` to `target`, going on with `<target>.part`; `wait` seconds, then twice as long, between attempts.

    Raises DownloadError when the server refuses, when no attempt of TRIES brings anything, when the disk is too small,
    and when the checksum differs (the file is removed then).
    """
    if target.exists():
        logger.info("%s was downloaded already", target)
    else:
        part = target.with_name(target.name + ".part")
        _persist(url, part, wait)
        part.replace(target)
    if sha256 is not None:
        with open(target, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            target.unlink()
            raise DownloadError(f"{url}: the file has SHA-256 {found}, expected {sha256}; it was removed, try again")


def _persist(url: str, part: Path, wait: float) -> None:
    failures = 0
    while True:
        before = _size(part)
        try:
            return _get(url, part)
        except (*CUT, _Interrupted) as error:
            failures = 0 if _size(part) > before else failures + 1
            if failures == TRIES:
                reason = getattr(error, "reason", None) or error
                there = f"{before} bytes are in {part}, the same command goes on from there"
                raise DownloadError(f"{url}: {reason} ({TRIES} attempts); {there}") from None
            logger.warning("%s: %s; going on from byte %d", url, error, _size(part))
            time.sleep(wait * (2**failures - 1))


def _get(url: str, part: Path) -> None:
    """One request for what is missing of `part`."""
    start = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code in BUSY:
            raise _Interrupted(f"the server says {error.code} {error.reason}") from None
        if error.code != 416:
            raise DownloadError(f"{url}: the server says {error.code} {error.reason}") from None
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(start):
            return  # all of it was there
        part.unlink()  # more than the server has: not this file
        return _get(url, part)
    with answer:
        if answer.status != 206:  # a server that cannot go on sends everything
            start = 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        _check_space(part.parent, 0 if total is None else total - start, f"downloading {url}")
        with open(part, "ab" if start else "wb") as file, _bar(part, start, total) as bar:
            for block in iter(lambda: answer.read(BLOCK), b""):
                file.write(block)
                bar.update(len(block))
    if total is not None and _size(part) < total:
        raise _Interrupted(f"the connection ended at {_size(part)} of {total} bytes")


def unpack(archive: Path, goal: Path, makes: str | None = None, expect: tuple[str, int] | None = None) -> None:
    """Unpack the one folder that a .tar.gz holds to `goal`, or, with `makes`, into it.

    `goal` (or `goal`/`makes`) appears when everything is in its place. `expect`: glob pattern and number of files.
    """
    if not hasattr(tarfile, "data_filter"):
        raise DownloadError("unpacking safely needs Python 3.11.4 or later")
    temporary = archive.with_name(archive.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    _check_space(archive.parent, archive.stat().st_size, f"unpacking {archive}")
    try:
        try:
            with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                tar.extractall(temporary, filter="data")
                while stream.read(BLOCK):  # up to the checksum, which gzip compares
                    pass
        except tarfile.FilterError as error:
            raise DownloadError(f"{archive}: refused, {error}; nothing was unpacked") from None
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DownloadError(f"{archive}: damaged ({error}); remove it and download it again") from None
        top = _only_folder(archive, temporary)
        if makes is not None and not (top / makes).exists():
            raise DownloadError(f"{archive}: holds no {top.name}/{makes}")
        if expect is not None and (count := sum(1 for _ in top.rglob(expect[0]))) != expect[1]:
            raise DownloadError(f"{archive}: holds {count} files {expect[0]}, expected {expect[1]}")
        _move(top, goal, makes)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _only_folder(archive: Path, unpacked: Path) -> Path:
    found = sorted(unpacked.iterdir())
    if len(found) != 1 or not found[0].is_dir():
        names = ", ".join(path.name for path in found[:5])
        raise DownloadError(f"{archive}: expected one folder in it, found {names or 'nothing'}")
    return found[0]


def _move(top: Path, goal: Path, makes: str | None) -> None:
    if not goal.exists():
        top.rename(goal)
        return
    last = [path for path in top.iterdir() if path.name != makes] + ([top / makes] if makes else [])
    for path in last:  # the one that says "done" at the end
        if not (goal / path.name).exists():
            path.rename(goal / path.name)


def _check_space(folder: Path, needed: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DownloadError(f"{what} needs {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB left")


def _bar(part: Path, start: int, total: int | None) -> tqdm:
    if total is not None:
        logger.info("%s: %.1f of %.1f MB to download", part.name, (total - start) / 1e6, total / 1e6)
    return tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None, leave=False)


def _size(path: Path) -> int:
    return os.path.getsize(path) if path.exists() else 0
