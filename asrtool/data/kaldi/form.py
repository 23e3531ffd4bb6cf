"""File names and line formats of a data directory, and a parallel reader of all its files."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from asrtool.data import audio
from asrtool.data.kaldi import tables
from asrtool.data.kaldi.tables import Irregular, Problem, Row, Table, fields, first, fix_command
from asrtool.data.shards import index as shard_index
from asrtool.log import plural

KNOWN = ("wav.scp", "segments", "text", "feats.scp", "cmvn.scp", "vad.scp")
SECONDS, COUNTS = {"utt2dur", "reco2dur"}, {"utt2num_frames", "utt2num_samples"}
DIFFERENCE = 0.1  # seconds by which utt2dur may differ from segments
NOT_LABELS = {"utt2spk", "spk2utt", "utt2dur", "utt2uniq", "utt2shard"} | COUNTS


class Segment(NamedTuple):
    """A line of `segments`, in seconds; an end of -1 (the recording's end) is None here."""

    recording: str
    start: float
    end: float | None

    @classmethod
    def parse(cls, text: str) -> Segment:
        """Raise ValueError for anything but a name and two numbers."""
        recording, start, end = fields(text)
        return cls(recording, float(start), None if float(end) == -1 else float(end))

    def duration(self, lengths: Mapping[str, float]) -> float | None:
        """Seconds; None if they depend on a recording of unknown length."""
        end = lengths.get(self.recording) if self.end is None else self.end
        return None if end is None else end - self.start

    def is_beyond(self, lengths: Mapping[str, float]) -> bool:
        """Whether it ends after its recording; False if the recording's length is unknown."""
        length = lengths.get(self.recording, math.inf)
        return self.start >= length or (self.end is not None and self.end > length + audio.SLACK)

    def is_unlike(self, seconds: str, lengths: Mapping[str, float]) -> bool:
        """Whether a duration of utt2dur differs from its own."""
        duration = self.duration(lengths)
        return duration is not None and abs(duration - float(seconds)) > DIFFERENCE


def is_label(name: str) -> bool:
    return re.fullmatch(r"(utt|spk)2\w+", name) is not None and name not in NOT_LABELS


def is_table(name: str) -> bool:
    return (
        name in KNOWN
        or name in NOT_LABELS
        or is_label(name)
        or re.fullmatch(r"reco2\w+", name) is not None
    )


def names(folder: Path) -> list[str]:
    """The names of the files that belong to a data directory, in alphabetical order."""
    return sorted(path.name for path in folder.iterdir() if is_table(path.name) and path.is_file())


def is_right(name: str, value: str) -> bool:
    """Whether a value is valid in the file `name`."""
    if name == "text":
        return True  # an empty transcript is legal
    if name == "segments":
        return is_segment(value)
    if name == "utt2spk":
        return len(fields(value)) == 1
    if name in SECONDS or name in COUNTS:
        return is_positive(value, whole=name in COUNTS)
    if name == shard_index.FILE:
        return shard_index.is_member(value)
    return value != ""


def is_positive(text: str, whole: bool = False) -> bool:
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        return False
    return value > 0 and math.isfinite(value)


def is_segment(value: str) -> bool:
    try:
        segment = Segment.parse(value)
    except ValueError:
        return False
    return (
        0 <= segment.start < (math.inf if segment.end is None else segment.end)
        and segment.end != math.inf
    )


def seconds(value: float) -> str:
    """Seconds to the microsecond, without trailing zeros."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def about(
    table: Table,
    rows: Iterable[Row],
    text: str,
    remedy: str,
    kind: str = "error",
    noun: str = "utterance",
) -> list[Problem]:
    """One problem for all `rows`, or none; `{n}` and `{fix}` are filled in."""
    rows = list(rows)
    if not rows:
        return []
    return [
        Problem(
            where=f"{table.path}:{rows[0].line}",
            what=text.replace("{n}", plural(len(rows), noun)),
            kind=kind,
            remedy=remedy.replace("{fix}", fix_command(table.path.parent)),
            count=len(rows),
            examples=first(row.id for row in rows),
        )
    ]


# -- all files in parallel -------------------------------------------------


# each has every utterance, or is absent
REQUIRED = {"text", "utt2spk", "utt2dur", "feats.scp", "utt2num_frames"}
NOT_OF_UTTERANCES = ("spk2", "reco2", "cmvn.scp")  # beginnings of names


def of_utterances(names: Iterable[str], segmented: bool) -> list[str]:
    """The files that have a line for an utterance."""
    others = (*NOT_OF_UTTERANCES, "wav.scp") if segmented else NOT_OF_UTTERANCES
    return [name for name in names if not name.startswith(others)]


def walk(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Each utterance and its values in the files `names`; raises Irregular for malformed files."""
    names = list(names)
    segmented = "segments" in names
    source = "segments" if segmented else "wav.scp"
    others = {
        name: lines(folder / name) for name in of_utterances(names, segmented) if name != source
    }
    # Every file is sorted by id, so a merge join with one line of look-ahead per file suffices.
    ahead = {name: next(rows, None) for name, rows in others.items()}
    for key, value in lines(folder / source):
        values = {source: value}
        for name, line in ahead.items():
            if line is not None and line[0] == key:
                values[name] = line[1]
                ahead[name] = next(others[name], None)
            elif name in REQUIRED:
                raise Irregular(f"{folder / name}: no line for {key}")
        yield key, values
    for name, line in ahead.items():
        if line is not None:
            raise Irregular(f"{folder / name}: no audio for {line[0]}")


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Id and value of each line of a valid file."""
    before, name = "", path.name
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                key, value = tables.split(raw)
            except UnicodeDecodeError:
                raise Irregular(f"{path}:{number}: not UTF-8") from None
            torn = raw.startswith(codecs.BOM_UTF8) or raw.endswith(b"\r\n")
            if torn or key <= before or not key.isprintable() or not is_right(name, value):
                raise Irregular(f"{path}:{number}: unexpected line")
            before = key
            yield key, value
    if not before:
        raise Irregular(f"{path}: empty")
