"""NeMo's manifests, with audio files or with tar archives.

    {"audio_filepath": ..., "duration": s, "offset": s, "text": ..., "speaker": ..., "lang": ...}

Of archives, `audio_filepath` is the name of the member, and `shard_id` the number of the archive. A
member from which several lines cut parts is named `<name>-sub1`, `<name>-sub2` ... in the lines.
Without an offset, NeMo reads `duration` seconds from the start of the file, and the whole file if
it ends within 0.2 s of that; so does this reader. The lines have no ids: they are made from
`audio_filepath` and, for parts of a file, start and end.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from asrtool.data.toolkits import entries, manifests, tars
from asrtool.data.toolkits.entries import Entry, Item, LeftOut, Notes, Source
from asrtool.errors import UserError

TOLERANCE = 0.2  # seconds
PATHS = ("audio_filepath", "audio_filename", "audio_file")
KNOWN = {*PATHS, "duration", "offset", "text", "text_filepath", "speaker", "shard_id"}
PART = re.compile(r"(.+)-sub\d+(\.\w+)?")
NUMBER = re.compile(r"_(\d+)[^/_]*\.tar$")  # of an archive


def open_nemo(source: str, archives: str | None, fields: Mapping[str, str]) -> Source:
    """A manifest, or several (a pattern or a range).

    archives: their names likewise; by default audio_<shard_id>.tar beside the manifest or in the
    folder above. fields: text, speaker, id -> key of the manifest.
    """
    files = entries.expanded(source)
    found = [] if archives is None else entries.expanded(archives)
    if archives is None and (ids := _shard_ids(files)):
        folders = (files[0].parent, files[0].parent.parent)
        found = [_beside(folders, shard, files[0]) for shard in sorted(ids)]
    manifest = _Manifest(files, found, fields)
    return Source(manifest.items, files, found)


def _shard_ids(files: Sequence[Path]) -> set[int]:
    """The numbers of all archives that the manifests name."""
    shards = {row.get("shard_id") for path in files for _, row in manifests.rows(path)}
    return {shard for shard in shards if isinstance(shard, int) and shard >= 0}


def _beside(folders: Sequence[Path], shard: int, manifest: Path) -> Path:
    for folder in folders:
        if (path := folder / f"audio_{shard}.tar").exists():
            return path
    raise UserError(
        f"{manifest}: its lines are of archive {shard}, but there is no audio_{shard}.tar beside it"
        " or in the folder above; name the archives by --tars '<folder>/audio_{0..7}.tar'"
    )


class _Line(NamedTuple):
    """A line of a manifest; path: its audio_filepath."""

    where: str
    file: Path
    path: str
    row: dict


@dataclass
class _Manifest:
    """The lines of some manifests, and the members of their archives."""

    files: Sequence[Path]
    archives: Sequence[Path]
    fields: Mapping[str, str]
    counts: Counter[str] = field(default_factory=Counter)  # lines of each audio_filepath
    members: dict[tuple[int | None, str], tars.Member] = field(default_factory=dict)

    def items(self, notes: Notes) -> Iterator[Item]:
        self.counts.update(line.path for line in self._lines())
        names = entries.Names(self.counts)
        self._read_archives()
        used = set()
        for line in self._lines():
            key = self._id(line, names)
            try:
                audio, recording = self._audio(line, names)
            except UserError as error:
                yield LeftOut(line.where, key, str(error))
                continue
            used.add(audio)
            yield self._entry(line, key, audio, recording, notes)
        unused = {member.reference for member in self.members.values()} - used
        if unused:
            notes["members of the archives that no line names are not imported"] += len(unused)

    def _lines(self) -> Iterator[_Line]:
        for file in self.files:
            for where, row in manifests.rows(file):
                path = next((row[name] for name in PATHS if row.get(name)), None)
                if not isinstance(path, str):
                    raise UserError(f"{where}: there is no '{PATHS[0]}'; is it a manifest of NeMo?")
                yield _Line(where, file, path, row)

    def _read_archives(self) -> None:
        """Note the place of each member, by the number of its archive and its name."""
        single = len(self.archives) == 1
        for path in self.archives:
            match = NUMBER.search(path.name)
            if match is None and not single:
                raise UserError(f"{path}: expected a name with a number, such as audio_0.tar")
            for member in tars.members(path):
                self.members[None if single else int(match[1]), member.name] = member

    def _audio(self, line: _Line, names: entries.Names) -> tuple[str, str]:
        """The audio of a line, and the id of the recording that it is part of."""
        if not self.archives:
            return entries.located(line.path, [Path(), line.file.parent]), names(line.path)
        shard = None if len(self.archives) == 1 else line.row.get("shard_id")
        part = PART.fullmatch(line.path)
        for name in (line.path, (part[1] + (part[2] or "")) if part else line.path):
            if (member := self.members.get((shard, name))) is not None:
                return member.reference, entries.word(os.path.splitext(name)[0])
        of = "the archive" if shard is None else f"archive {shard}"
        raise UserError(f"{of} has no member {line.path}")

    def _id(self, line: _Line, names: entries.Names) -> str:
        if "id" in self.fields:
            return entries.word(entries.need(line.row, self.fields["id"], line.where))
        start = entries.number(line.row.get("offset") or 0, "offset", line.where)
        if self.counts[line.path] == 1 and not start:
            return names(line.path)
        duration = entries.need(line.row, "duration", line.where)
        end = start + entries.number(duration, "duration", line.where)
        return f"{names(line.path)}-{round(1000 * start):08}-{round(1000 * end):08}"

    def _text(self, line: _Line, notes: Notes) -> str:
        where, row = line.where, line.row
        if "text" in self.fields:
            return entries.transcript(entries.need(row, self.fields["text"], where), where, notes)
        if row.get("text") is None and isinstance(row.get("text_filepath"), str):
            file = entries.located(row["text_filepath"], [Path(), line.file.parent])
            text = " ".join(content for _, content in manifests.lines(Path(file)))
            return entries.transcript(text, where, notes)
        if row.get("text") is None:
            notes["lines have no 'text', so the transcripts are empty"] += 1
            return ""
        return entries.transcript(row["text"], where, notes)

    def _entry(self, line: _Line, key: str, audio: str, recording: str, notes: Notes) -> Entry:
        where, row = line.where, line.row
        given = row.get("duration")
        duration = None if given is None else entries.number(given, "duration", where)
        if duration == 0:
            raise UserError(f"{where}: {key}: 'duration' is 0, expected more")
        known = KNOWN | set(self.fields.values())
        rest = {name: value for name, value in row.items() if name not in known}
        return Entry(
            where=where,
            id=key,
            audio=audio,
            text=self._text(line, notes),
            speaker=entries.speaker(row.get(self.fields.get("speaker", "speaker"))),
            labels=entries.labels(rest, notes),
            recording=recording,
            start=entries.number(row.get("offset") or 0, "offset", where),
            duration=duration,
            tolerance=TOLERANCE,
        )
