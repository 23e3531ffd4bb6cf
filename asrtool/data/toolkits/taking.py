"""Entries of other toolkits -> a data directory: audio measured, checked and, if asked, written."""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from asrtool.data import audio, corpus, tree
from asrtool.data.audio.decoding import opened
from asrtool.data.kaldi import datadir, tables
from asrtool.data.shards import index, packing
from asrtool.data.toolkits.entries import Entry, Item, LeftOut, Notes, Source, is_writable
from asrtool.errors import UserError
from asrtool.log import logger, plural
from asrtool.system import file_names
from asrtool.types import Utterance


class Sound(NamedTuple):
    """What a file says of itself; member: its place, in an archive."""

    rate: int  # Hz
    channels: int
    samples: int  # of each channel
    member: index.Member | None = None

    @property
    def seconds(self) -> float:
        return self.samples / self.rate


@dataclass(frozen=True)
class Folder:
    """Where audio is written: to `aside`, which becomes `final`."""

    aside: Path
    final: Path


@dataclass
class Taken:
    """Utterances, id -> place of those that are members of archives, and what is left out."""

    rows: list[Utterance] = field(default_factory=list)
    members: dict[str, index.Member] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)


def take(source: Source, target: Path, out: Path, folder: Folder | None) -> None:
    """Write the data directory `target`, which will become `out`.

    folder: audio is written there; without it, it stays where it is, and archives whose members are
    whole utterances get `utt2shard`, so that they are trained from as shards. Raises `UserError` if
    an id occurs twice, or if more than a tenth of the utterances cannot be used.
    """
    notes: Notes = Counter()
    taken = Taken()
    _measured.cache_clear()
    with ThreadPoolExecutor(packing.THREADS) as pool:
        items = _counted(source, notes)
        for row, member in packing.in_order(pool, lambda item: _attempt(item, folder), items):
            if isinstance(row, LeftOut):
                taken.left_out.append(row)
                continue
            taken.rows.append(row)
            if member is not None:
                taken.members[row.id] = member
    _report_left_out(taken, target, out)
    datadir.write(target, taken.rows)
    if len(taken.members) == len(taken.rows):
        places = {key: str(member) for key, member in taken.members.items()}
        tables.write(target / index.FILE, places)
    _report(taken, notes, out)


def _counted(source: Source, notes: Notes) -> Iterator[Item]:
    """The items of a source; their ids must differ."""
    lines: dict[str, str] = {}
    for item in source.items(notes):
        if not item.id:
            raise UserError(f"{item.where}: the utterance has no id")
        if item.id in lines:
            first = lines[item.id]
            raise UserError(f"{item.where}: the id '{item.id}' occurs twice, first in {first}")
        lines[item.id] = item.where
        if isinstance(item, Entry):
            if item.speaker is None:
                notes["utterances without a speaker: each has one of its own"] += 1
            if not item.text:
                notes["utterances with an empty transcript"] += 1
        yield item


def _attempt(
    item: Item, folder: Folder | None
) -> tuple[Utterance, index.Member | None] | tuple[LeftOut, None]:
    if isinstance(item, LeftOut):
        return item, None
    try:
        if not is_writable(item):
            raise audio.AudioError("a text or name is not valid Unicode")
        return resolved(item, folder)
    except audio.AudioError as error:
        return LeftOut(item.where, item.id, str(error)), None


def resolved(entry: Entry, folder: Folder | None) -> tuple[Utterance, index.Member | None]:
    """The utterance of an entry, and its place if it is a whole member of an archive.

    Raises `AudioError` if the audio is not what the entry says.
    """
    if isinstance(entry.audio, bytes) and folder is None:
        raise UserError(
            f"{entry.where}: the audio is inside the file, where wav.scp cannot name it; give "
            "--audio <folder>, and it is written there"
        )
    name = entry.audio if isinstance(entry.audio, str) else f"audio of {entry.id}"
    sound = _measured(name) if name == entry.audio else _of_bytes(name, entry.audio)
    part = _part(entry, name, sound)
    _check_channels(entry, name, sound, folder)
    row = Utterance(
        id=entry.id,
        audio=name,
        duration=sound.seconds if part is None else part[1] - part[0],
        text=entry.text,
        speaker=entry.speaker or entry.id,
        recording=None if part is None else entry.recording or entry.id,
        start=0.0 if part is None else part[0],
        labels=entry.labels,
    )
    if folder is not None:
        return _written(entry, row, folder), None
    return row, sound.member if part is None else None


# -- what the audio is ------------------------------------------------------


@lru_cache(maxsize=1024)  # the parts of a recording follow each other
def _measured(path: str) -> Sound:
    place = audio.member(path)
    if place is None or os.path.exists(path):
        return Sound(*audio.info(path))
    data = audio.contents(path)
    return _of_bytes(path, data, index.Member(*place, len(data), zlib.crc32(data)))


def _of_bytes(name: str, data: bytes, member: index.Member | None = None) -> Sound:
    with opened(name, data) as reader:
        return Sound(reader.rate, reader.channels, reader.length(), member)


def _part(entry: Entry, name: str, sound: Sound) -> tuple[float, float] | None:
    """Start and end of the entry in its audio, in seconds; None if it is the whole file.

    The manifest's lengths are compared with the audio's own, and never used instead.
    """
    seconds = sound.seconds
    if not sound.samples:
        raise audio.AudioError(f"{name}: holds no samples")
    if entry.length is not None and abs(entry.length - seconds) > entry.tolerance:
        raise audio.AudioError(
            f"{name}: is {seconds:.3f} s long, but the manifest says {entry.length:.3f} s; is it "
            "another file?"
        )
    end = seconds if entry.duration is None else entry.start + entry.duration
    if not entry.start and abs(end - seconds) <= entry.tolerance:
        return None
    if end > seconds + audio.SLACK or entry.start >= seconds:
        raise audio.AudioError(
            f"{name}: is {seconds:.3f} s long, but the manifest wants {entry.start:.3f} to "
            f"{end:.3f} s of it"
        )
    return entry.start, min(end, seconds)


def _check_channels(entry: Entry, name: str, sound: Sound, folder: Folder | None) -> None:
    channel = entry.channel or 0
    if channel >= sound.channels:
        has = plural(sound.channels, "channel")
        raise audio.AudioError(f"{name}: has {has}, and none is number {channel}, from 0")
    if sound.channels == 1:
        return
    if entry.channel is None:
        raise audio.AudioError(
            f"{name}: {sound.channels} channels, expected 1, and nothing says which; write the one "
            "that is wanted to a file of its own (`sox <file> <new file> remix 1`)"
        )
    if folder is None:
        raise audio.AudioError(
            f"{name}: channel {channel} of {sound.channels}; give --audio <folder>, and it is "
            "written to a file of its own"
        )


# -- writing ----------------------------------------------------------------


def _written(entry: Entry, row: Utterance, folder: Folder) -> Utterance:
    """The utterance with audio of its own, which is written to the folder."""
    if entry.channel is not None:
        data, kind, seconds = _channel_of(entry, row)
    elif isinstance(entry.audio, bytes):
        data, kind, seconds = packing.file_content(entry.audio, row.audio)
    else:
        data, kind, seconds = packing.audio_content(row)
    name = file_names.of(row.id, f".{kind}")
    (folder.aside / name).write_bytes(data)
    path = os.path.abspath(folder.final / name)
    return replace(row, audio=path, duration=seconds, recording=None, start=0.0)


def _channel_of(entry: Entry, row: Utterance) -> packing.Content:
    samples, rate, _ = audio.listen_to(audio.contents(row.audio), entry.channel)
    start, seconds = row.stretch
    if seconds is not None:
        samples = samples[round(start * rate) :][: round(seconds * rate)]
    return packing.flac(samples, rate)


# -- reports ----------------------------------------------------------------


def _report_left_out(taken: Taken, target: Path, out: Path) -> None:
    count, total = len(taken.left_out), len(taken.left_out) + len(taken.rows)
    if not total:
        raise UserError(f"{out}: there is no utterance in the source; nothing was written")
    for item in taken.left_out[: corpus.SHOWN]:
        logger.warning("left out %s", item)
    if tree.too_many(count, total) or not taken.rows:
        raise UserError(
            f"{out}: {count} of {total} utterances cannot be used; first {taken.left_out[0]}"
        )
    if count:
        logger.warning("%s: left out %d of %d, see %s", out, count, total, out / corpus.SKIPPED)
        text = "".join(f"{item}\n" for item in taken.left_out)
        (target / corpus.SKIPPED).write_text(text, encoding="utf-8", errors="backslashreplace")


def _report(taken: Taken, notes: Notes, out: Path) -> None:
    for note, count in sorted(notes.items()):
        logger.warning("%s: %s (%d)", out, note, count)
    packed = ", in shards" if len(taken.members) == len(taken.rows) else ""
    logger.info("%s: %s%s", out, corpus.size_of(taken.rows), packed)
