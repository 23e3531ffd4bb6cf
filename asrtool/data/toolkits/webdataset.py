"""WebDataset archives and WeNet's shards and raw lists.

    WebDataset   <key>.flac, <key>.txt or <key>.json {"text": ...}; keys end at the first full stop
    WeNet        shards: <key>.wav, <key>.txt; keys end at the last full stop, named by a list of
                 archives; raw lists: {"key": ..., "wav": <path>, "txt": ..., "start": s, "end": s}

Both are read where they are: audio in archives is not unpacked. The shards that asrtool writes are
of both kinds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from asrtool.data import tree
from asrtool.data.toolkits import entries, manifests, tars
from asrtool.data.toolkits.entries import Entry, Item, LeftOut, Notes, Source
from asrtool.errors import UserError

Split = Callable[[str], tuple[str, str]]
KNOWN = tars.AUDIO | tars.SMALL
RAW = {"key", "wav", "txt", "start", "end", "speaker"}


def open_webdataset(source: str, fields: Mapping[str, str]) -> Source:
    """An archive, several (a folder, a pattern, a range), or a list of them, one path a line.

    fields: text, speaker, id -> key of the .json; without `text`, a .txt comes first.
    """
    archives = _archives(source)
    return Source(lambda notes: _of_tars(archives, _at_first, fields, notes), [], archives)


def open_wenet(source: str) -> Source:
    """A raw list, a list of shards, or the shards themselves."""
    if not Path(source).is_file() or source.endswith(".tar"):
        archives = entries.expanded(source)
        return Source(lambda notes: _of_tars(archives, _at_last, {}, notes), [], archives)
    path = Path(source)
    _, first = next(manifests.lines(path), ("", ""))
    if first.startswith("{"):
        return Source(lambda notes: _of_raw(path, notes), [path])
    archives = _listed(path)
    return Source(lambda notes: _of_tars(archives, _at_last, {}, notes), [path], archives)


# -- archives ---------------------------------------------------------------


def _archives(source: str) -> list[Path]:
    path = Path(source)
    return _listed(path) if path.is_file() and path.suffix != ".tar" else entries.expanded(source)


def _listed(path: Path) -> list[Path]:
    """The archives that a list names, relative to the current folder or to that of the list."""
    found = []
    for where, line in manifests.lines(path):
        try:
            found.append(tree.need(Path(entries.located(line, [Path(), path.parent]))))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
    if not found:
        raise UserError(f"{path}: the list is empty; expected the path of an archive on each line")
    return found


def _at_first(name: str) -> tuple[str, str]:
    folder, base = os.path.split(name)
    stem, _, kind = base.partition(".")
    return os.path.join(folder, stem), kind


def _at_last(name: str) -> tuple[str, str]:
    stem, kind = os.path.splitext(name)
    return stem, kind.removeprefix(".")


def _of_tars(
    archives: list[Path], split: Split, fields: Mapping[str, str], notes: Notes
) -> Iterator[Item]:
    for path in archives:
        for sample in tars.samples(path, split):
            for kind in sample.members.keys() - KNOWN:
                notes[f"members .{kind} are not imported"] += 1
            yield _entry(sample, fields, notes)


def _entry(sample: tars.Sample, fields: Mapping[str, str], notes: Notes) -> Item:
    facts = tars.json_of(sample.members.get("json"))
    names = {name: fields.get(name, name) for name in ("id", "text", "speaker")}
    key = entries.word(facts.get(names["id"]) or sample.key.replace("/", "-"))
    found = sample.audio()
    if isinstance(found, str):
        return LeftOut(sample.where, key, f"it has {found}")
    if "txt" in sample.members and "text" not in fields:
        text = tars.decoded(sample.members["txt"])
    elif facts.get(names["text"]) is not None:
        text = facts[names["text"]]
    else:
        wanted = f"a .json with '{names['text']}'"
        wanted = wanted if "text" in fields else f".txt, nor {wanted}"
        return LeftOut(sample.where, key, f"it has no transcript: no {wanted}")
    known = {*names.values(), "duration"}  # which is measured
    rest = {k.removeprefix("utt2"): value for k, value in facts.items() if k not in known}
    return Entry(
        where=found.where,
        id=key,
        audio=found.reference,
        text=entries.transcript(text, sample.where, notes),
        speaker=entries.speaker(facts.get(names["speaker"])),
        labels=entries.labels(rest, notes),
    )


# -- raw lists --------------------------------------------------------------


def _of_raw(path: Path, notes: Notes) -> Iterator[Item]:
    names = entries.Names(str(row.get("wav", "")) for _, row in manifests.rows(path))
    for where, row in manifests.rows(path):
        key, wav, text = (entries.need(row, name, where) for name in ("key", "wav", "txt"))
        key = entries.word(key)
        start = entries.number(row.get("start", 0), "start", where)
        end = None if row.get("end") is None else entries.number(row["end"], "end", where)
        if end is not None and end <= start:
            raise UserError(f"{where}: {key} ends at {end:g} s but starts at {start:g} s")
        try:
            audio = entries.located(str(wav), [Path(), path.parent])
        except UserError as error:
            yield LeftOut(where, key, str(error))
            continue
        rest = {name: value for name, value in row.items() if name not in RAW}
        yield Entry(
            where=where,
            id=key,
            audio=audio,
            text=entries.transcript(text, where, notes),
            speaker=entries.speaker(row.get("speaker")),
            labels=entries.labels(rest, notes),
            recording=names(str(wav)),
            start=start,
            duration=None if end is None else end - start,
        )
