"""Stages that are skipped by what they depend on: a folder's `.stage.json` says which inputs and options made it.

    with stamp.building(out, "features", inputs=[data], options={"fbank": ...}) as target:
        if target is None:            # same inputs, same options: said so, nothing to do
            return
        ...write into target...       # a temporary sibling, renamed to `out` when the block ends without an error

A killed stage leaves only `<out>.tmp`, which the next run removes. File times never matter: text files count by
content, archives and audio by name and size.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from asrtool.log import logger

NAME = ".stage.json"
VERSION = 1  # raise it when stages write something else from the same inputs
BY_SIZE = {".ark", ".wav", ".flac", ".opus", ".ogg", ".mp3", ".sph", ".tar", ".gz", ".safetensors"}


def digest(path: Path) -> str:
    """Of a file its content (audio and archives: its size), of a folder the digests of what lies in it."""
    total = hashlib.sha256()
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != NAME) if path.is_dir() else [path]
    for file in files:
        total.update(str(file.relative_to(path) if path.is_dir() else file.name).encode())
        if file.suffix.lower() in BY_SIZE:
            total.update(str(file.stat().st_size).encode())
        else:
            with open(file, "rb") as stream:
                total.update(hashlib.file_digest(stream, "sha256").digest())
    return total.hexdigest()[:16]


def describe(stage: str, inputs: Iterable[Path], options: Mapping[str, object]) -> dict:
    """What a stamp holds: stage, version, options and the digest of each input."""
    made = {"stage": stage, "version": VERSION, "options": options, "inputs": {p.name: digest(p) for p in inputs}}
    return json.loads(json.dumps(made, default=str))  # compare as it will be read back


def read(out: Path) -> dict | None:
    try:
        return json.loads((out / NAME).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


@contextmanager
def building(
    out: Path, stage: str, inputs: Iterable[Path] = (), options: Mapping[str, object] | None = None, force: bool = False
) -> Iterator[Path | None]:
    """Yield a fresh folder to write into, or None when `out` is up to date; `force` builds it anyway."""
    out = Path(out)
    now = describe(stage, inputs, options or {})
    before = read(out)
    if before == now and not force:
        logger.info("%s: %s is up to date", stage, out)
        yield None
        return
    if before is not None and before != now:
        logger.info("%s: %s is made again, since %s changed", stage, out, difference(before, now))
    target = out.with_name(out.name + ".tmp")
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    yield target
    (target / NAME).write_text(json.dumps(now, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    replace_folder(target, out)


def difference(before: Mapping, now: Mapping) -> str:
    """Which inputs and options differ, in words."""
    if before.get("version") != now["version"] or before.get("stage") != now["stage"]:
        return "its maker"
    changed = []
    for group in ("options", "inputs"):
        old, new = before.get(group, {}), now[group]
        changed += [key for key in {**old, **new} if old.get(key) != new.get(key)]
    return ", ".join(changed) or "something"


def replace_folder(new: Path, out: Path) -> None:
    """Put folder `new` in the place of `out`; whatever moment the machine dies at, one whole folder is left."""
    for file in new.rglob("*"):
        if file.is_file():
            _sync(file)
    old = out.with_name(out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.rename(out, old)
    os.rename(new, out)
    _sync(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
