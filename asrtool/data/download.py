"""Download, verify and unpack corpus archives; an incomplete one never reaches its destination.

An archive is written to a temporary file. An interrupted download resumes where it stopped (HTTP
Range), provided that the server still has the same file (by ETag or date, and length). Its SHA-256
is checked if one is published. It is unpacked beside the destination with Python's "data" filter,
which rejects members that point outside, and renamed when complete. Nested archives are treated
alike. The unpacked size is bounded.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import re
import shutil
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from email.message import Message
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.system import atomic, stamp

BLOCK = 1 << 20
TRIES = 5  # attempts in a row without any data
RATIO, SMALL = 100, 10e9  # an archive may unpack to as many times its size, or so many bytes
TIMEOUT = 60.0  # seconds without a byte
BUSY = {429, 500, 502, 503, 504}  # HTTP errors that may be temporary
CUT = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class _Interrupted(Exception):
    """The connection ended before the file did."""


def fetch(
    url: str,
    target: Path,
    sha256: str | None = None,
    wait: float = 2.0,
    md5: str | None = None,
    size: int | None = None,
) -> None:
    """Download `url` to `target`, resuming from `<target>.part`.

    wait: seconds between attempts, doubled each time. Raises UserError when the server refuses,
    when TRIES attempts bring nothing, when the disk is too small, and when size (in bytes) or
    checksum differ (the file is then removed).
    """
    with stamp.locked(target, wait=True):  # a second process would write into the same file
        if target.exists():
            logger.info("%s has been downloaded already", target)
        else:
            part = target.with_name(target.name + ".part")
            _persist(url, part, wait)
            atomic.put(part, target)
            _note(part).unlink(missing_ok=True)
    expected = {"size in bytes": size, "SHA-256": sha256, "MD5": md5}
    for key, value in expected.items():
        if value is None:
            continue
        actual = (
            _size(target)
            if key == "size in bytes"
            else _checksum(target, key.replace("-", "").lower())
        )
        if actual != value:
            target.unlink()
            raise UserError(
                f"{url}: {key} of the file is {actual}, expected {value}; it was removed, try again"
            )


def _checksum(path: Path, kind: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


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
                there = f"{before} bytes are in {part}; the same command continues from there"
                raise UserError(f"{url}: {reason} ({TRIES} attempts); {there}") from None
            logger.warning("%s: %s; continuing from byte %d", url, error, _size(part))
            time.sleep(wait * (2**failures - 1))


def _get(url: str, part: Path) -> None:
    """Request the missing bytes of `part` once."""
    start = _size(part)
    known = _known(part) if start else {}
    headers = {"Range": f"bytes={start}-"} if start else {}
    if "validator" in known:
        # if the file has changed, the server sends it from the start instead
        headers["If-Range"] = known["validator"]
    try:
        request = urllib.request.Request(url, headers=headers)
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code in BUSY:
            raise _Interrupted(f"the server replied {error.code} {error.reason}") from None
        if error.code != 416:
            raise UserError(f"{url}: the server replied {error.code} {error.reason}") from None
        # 416, range not satisfiable: there is nothing after byte `start`
        if error.headers.get("Content-Range", "").rpartition("/")[2] == str(start):
            return  # the file was complete
        _note(part).unlink(missing_ok=True)
        part.unlink()  # longer than on the server: a different file
        return _get(url, part)
    with answer:
        if answer.status != 206:  # a server without ranges sends everything
            start = 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length is not None else None
        if start and not _continues(answer.headers, start, known):
            part.unlink()
            raise _Interrupted("the file on the server has changed, or it sent another part of it")
        _note(part).write_text(json.dumps(_facts(answer.headers, total)), encoding="utf-8")
        _check_space(part.parent, 0 if total is None else total - start, f"downloading {url}")
        with open(part, "ab" if start else "wb") as file, _bar(part, start, total) as bar:
            for block in iter(lambda: answer.read(BLOCK), b""):
                file.write(block)
                bar.update(len(block))
    if total is not None and _size(part) < total:
        raise _Interrupted(f"the connection ended at byte {_size(part)} of {total}")
    if total is not None and _size(part) > total:
        part.unlink()
        raise _Interrupted(f"the server sent more than the {total} bytes that it promised")


def _note(part: Path) -> Path:
    """Where the facts about an unfinished file are."""
    return part.with_name(part.name + ".json")


def _known(part: Path) -> dict:
    try:
        known = json.loads(_note(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _facts(headers: Message, total: int | None) -> dict:
    """What identifies a file on the server: its length, and ETag or date."""
    facts = {} if total is None else {"total": total}
    tag = headers.get("ETag", "")
    validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")
    return facts | ({"validator": validator} if validator else {})


def _continues(headers: Message, start: int, known: dict) -> bool:
    """Whether a partial answer continues the same file at byte `start`."""
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
    if match is None or int(match[1]) != start:
        return False
    now = _facts(headers, None if match[2] == "*" else int(match[2]))
    return all(now.get(name, value) == value for name, value in known.items())


def unpack(
    archive: Path,
    goal: Path,
    makes: str | None = None,
    expect: tuple[str, int] | None = None,
    nested: str | None = None,
) -> None:
    """Unpack the only folder of a .tar.gz, .tar or .zip to `goal`, or, with `makes`, into it.

    `goal` (or `goal`/`makes`) appears when it is complete. expect: a glob pattern and its number of
    files. nested: glob pattern of archives inside that are unpacked in their folder and removed.
    """
    temporary = archive.with_name(archive.name + ".unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    _check_space(
        archive.parent, archive.stat().st_size * (2 if nested else 1), f"unpacking {archive}"
    )
    try:
        _extract(archive, temporary)
        top = _only_folder(archive, temporary)
        if makes is not None and not (top / makes).exists():
            raise UserError(f"{archive}: {top.name}/{makes} is missing")
        if nested is not None:
            unpack_nested(top, nested, remove=True)
        if expect is not None and (count := sum(1 for _ in top.rglob(expect[0]))) != expect[1]:
            raise UserError(f"{archive}: contains {count} files {expect[0]}, expected {expect[1]}")
        _move(top, goal, makes)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def unpack_nested(folder: Path, pattern: str, remove: bool = False) -> None:
    """Unpack the archives in `folder`, except those for which a folder of the same name exists."""
    archives = sorted(folder.glob(pattern))
    for archive in tqdm(archives, desc=f"unpacking {pattern}", disable=None, leave=False):
        name = archive.name.split(".")[0]
        if not any(archive.parent.glob(f"*/{name}")) and not (archive.parent / name).exists():
            temporary = archive.with_name(archive.name + ".unpacking")
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                _extract(archive, temporary)
                _merge(temporary, archive.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        if remove:
            archive.unlink()


def _extract(archive: Path, folder: Path) -> None:
    """Unpack an archive; UserError where it is damaged, has paths outside of `folder`, or unpacks
    to more than the disk has room for, or than an archive of its size plausibly holds.
    """
    if not hasattr(tarfile, "data_filter"):
        raise UserError("unpacking safely needs Python 3.11.4 or later")
    count = _Bound(archive)

    def accept(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        count.add(member.name, member.size)
        return tarfile.data_filter(member, path)

    try:
        if archive.suffix == ".zip":
            _extract_zip(archive, folder, count)
        elif archive.suffix == ".tar":
            with tarfile.open(archive, mode="r:") as tar:
                tar.extractall(folder, filter=accept)
        else:
            with gzip.open(archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
                tar.extractall(folder, filter=accept)
                # tarfile stops at the end of the archive: read on to the checksum, which gzip
                # verifies
                while stream.read(BLOCK):
                    pass
    except tarfile.FilterError as error:
        raise UserError(f"{archive}: refused, {error}; nothing was unpacked") from None
    except NotImplementedError as error:
        raise UserError(f"{archive}: cannot be unpacked here: {error}") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{archive}: damaged ({error}); remove it and download it again") from None


class _Bound:
    """Adds up what an archive unpacks to, and raises UserError where that is too much."""

    def __init__(self, archive: Path) -> None:
        self.archive, self.bytes = archive, 0
        self.free = shutil.disk_usage(archive.parent).free
        self.most = max(RATIO * archive.stat().st_size, SMALL)

    def add(self, name: str, size: int) -> None:
        self.bytes += size
        if self.bytes > min(self.most, self.free):
            room = "are left on the disk" if self.free < self.most else "its size allows"
            raise UserError(
                f"{self.archive}: refused, it unpacks to {self.bytes / 1e9:,.1f} GB or more (up to "
                f"'{name}'), but {min(self.most, self.free) / 1e9:,.1f} GB {room}; nothing was "
                "unpacked"
            )


def _extract_zip(archive: Path, folder: Path, count: _Bound) -> None:
    """Raise for paths outside, as for tar archives; zipfile would silently change them."""
    with zipfile.ZipFile(archive) as packed:
        members = []
        for member in packed.infolist():
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if not path.parts:
                continue  # "./" or "": the folder itself
            if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
                raise UserError(
                    f"{archive}: refused, '{member.filename}' would be extracted outside; nothing "
                    "was unpacked"
                )
            if member.flag_bits & 1:
                raise UserError(
                    f"{archive}: '{member.filename}' is encrypted; unpack it with its password "
                    "(`unzip -P <password>`), and give the recipe the folder (--corpus)"
                )
            count.add(member.filename, member.file_size)
            members.append(member)
        folder.mkdir(parents=True, exist_ok=True)
        packed.extractall(folder, members)


def _only_folder(archive: Path, unpacked: Path) -> Path:
    entries = sorted(unpacked.iterdir())
    if len(entries) != 1 or not entries[0].is_dir():
        names = ", ".join(path.name for path in entries[:5])
        raise UserError(f"{archive}: expected one folder inside, found {names or 'nothing'}")
    return entries[0]


def _move(top: Path, goal: Path, makes: str | None) -> None:
    if not goal.exists():
        top.rename(goal)
        return
    last = [path for path in top.iterdir() if path.name != makes] + ([top / makes] if makes else [])
    # the entry whose existence means "done" moves last, so a kill in between is noticed
    for path in last:
        if not (goal / path.name).exists():
            path.rename(goal / path.name)


def _merge(source: Path, goal: Path) -> None:
    """Move the content of `source` into `goal`, folder by folder; existing files stay."""
    for path in sorted(source.iterdir()):
        there = goal / path.name
        if not there.exists():
            path.rename(there)
        elif path.is_dir():
            _merge(path, there)


def _check_space(folder: Path, needed: int, purpose: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{purpose} needs {needed / 1e9:.1f} GB, but {folder} has only {free / 1e9:.1f} GB left"
        )


def _bar(part: Path, start: int, total: int | None) -> tqdm:
    if total is not None:
        logger.info(
            "%s: %.1f of %.1f MB to download", part.name, (total - start) / 1e6, total / 1e6
        )
    return tqdm(
        total=total,
        initial=start,
        unit="B",
        unit_scale=True,
        desc=part.stem,
        disable=None,
        leave=False,
    )


def _size(path: Path) -> int:
    return os.path.getsize(path) if path.exists() else 0
