"""The form of a data directory's files: their names, and what a line of each looks like."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from asrtool.data import audio, shard_index
from asrtool.data.tables import Problem, Row, Table, fields, first, fix_command, plural

KNOWN = ("wav.scp", "segments", "text", "feats.scp", "cmvn.scp", "vad.scp")
SECONDS, COUNTS = {"utt2dur", "reco2dur"}, {"utt2num_frames", "utt2num_samples"}
DIFFERENCE = 0.1  # seconds that utt2dur may differ from segments
NOT_LABELS = {"utt2spk", "spk2utt", "utt2dur", "utt2uniq", "utt2shard"} | COUNTS


class DataDirError(Exception):
    """A data directory that cannot be read or written; the message says where, what, and what to
    do.
    """


class Segment(NamedTuple):
    """A line of `segments`, in seconds; an end of -1 is that of the recording, as in Kaldi, and
    None here.
    """

    recording: str
    start: float
    end: float | None

    @classmethod
    def parse(cls, text: str) -> Segment:
        """Raises ValueError for anything but a name and two numbers."""
        recording, start, end = fields(text)
        return cls(recording, float(start), None if float(end) == -1 else float(end))

    def duration(self, lengths: Mapping[str, float]) -> float | None:
        """Seconds; None where they depend on a recording whose length is not known."""
        end = lengths.get(self.recording) if self.end is None else self.end
        return None if end is None else end - self.start

    def is_beyond(self, lengths: Mapping[str, float]) -> bool:
        """Whether it does not lie in its recording; False where the length of that is not known."""
        length = lengths.get(self.recording, math.inf)
        return self.start >= length or (self.end is not None and self.end > length + audio.SLACK)

    def is_unlike(self, seconds: str, lengths: Mapping[str, float]) -> bool:
        """Whether a duration of utt2dur is not its own."""
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
    """Whether a value is what the file holds."""
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


def about(
    table: Table,
    rows: Iterable[Row],
    what: str,
    mend: str,
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
            what=what.replace("{n}", plural(len(rows), noun)),
            kind=kind,
            mend=mend.replace("{fix}", fix_command(table.path.parent)),
            count=len(rows),
            examples=first(row.id for row in rows),
        )
    ]
