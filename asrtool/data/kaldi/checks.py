"""Check a data directory: all problems at once, with file:line, examples and the fixing command.

A valid folder is read once, all files in parallel and in little memory (`faultless`). Only a folder
with a fault is read into memory, where each rule reports the lines that violate it.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from asrtool.data import audio
from asrtool.data.kaldi import tables
from asrtool.data.kaldi.form import (
    COUNTS,
    NOT_OF_UTTERANCES,
    SECONDS,
    Irregular,
    Segment,
    about,
    is_positive,
    is_right,
    is_segment,
    lines,
    names,
    walk,
)
from asrtool.data.kaldi.tables import Problem, Row, Table, fields, first, fix_command
from asrtool.data.kaldi.transcripts import Accents, is_clean, mixed_accents, odd_characters
from asrtool.data.shards import index as shard_index
from asrtool.log import plural


def load(folder: Path) -> dict[str, Table]:
    """Every file of a data directory by name, in alphabetical order."""
    return {name: tables.read(folder / name) for name in names(folder)} if folder.is_dir() else {}


def check(folder: Path, base: Path | None = None) -> list[Problem]:
    """All problems of a data directory, and notes. Audio files must exist; they are not opened."""
    folder = Path(folder)
    # the common case, which does not depend on memory
    notes = faultless(folder, base)
    if notes is not None:
        return notes
    loaded = load(folder)
    problems = [problem for table in loaded.values() for problem in table.problems]
    problems += consistency(folder, loaded)
    lengths = recording_lengths(loaded, base)
    problems += contents(loaded, lengths)
    if "wav.scp" in loaded:
        problems += missing_audio(loaded["wav.scp"], base)
    if "segments" in loaded and "wav.scp" in loaded:
        problems += beyond_the_end(loaded["segments"], lengths)
    return problems


# -- files against each other ----------------------------------------------


def consistency(folder: Path, loaded: Mapping[str, Table]) -> list[Problem]:
    """Contradictions between the files, and malformed values."""
    if "wav.scp" not in loaded:
        text = "there is no wav.scp" if folder.is_dir() else "the folder does not exist"
        remedy = "stage 0 of a recipe writes data directories"
        return [Problem(where=str(folder), what=text, remedy=remedy)]
    problems = [problem for name, table in loaded.items() for problem in wrong_values(name, table)]
    ids = utterance_ids(loaded)
    source = "segments" if "segments" in loaded else "wav.scp"
    if "segments" in loaded:
        recordings = loaded["wav.scp"].values()
        rows = [
            row
            for row in loaded["segments"].rows
            if row.value and fields(row.value)[0] not in recordings
        ]
        problems += about(
            loaded["segments"],
            rows,
            "{n} of recordings not in wav.scp",
            "{fix} drops them",
        )
    for name in ("text", "utt2spk", "utt2dur", "feats.scp", "utt2num_frames"):
        if name in loaded:
            problems += _lacking(loaded[name], ids, source)
    for name, table in loaded.items():
        if name == "text" or name.startswith("utt2") or name in ("feats.scp", "vad.scp"):
            extra = [row for row in table.rows if row.id not in ids]
            without = "audio" if source == "wav.scp" else "a line in segments"
            problems += about(table, extra, f"{{n}} without {without}", "{fix} drops them")
    # Last, because missing and superfluous ids above may be the cause of what it finds.
    problems += inconsistent_speakers(loaded)
    return problems


def utterance_ids(loaded: Mapping[str, Table]) -> dict[str, Row]:
    table = loaded.get("segments", loaded["wav.scp"])
    return {row.id: row for row in reversed(table.rows)}


def _lacking(table: Table, ids: Mapping[str, Row], source: str) -> list[Problem]:
    present = {row.id for row in table.rows}
    lacking = [key for key in ids if key not in present]
    if not lacking:
        return []
    text = f"{plural(len(lacking), 'utterance')} of {source} missing"
    remedy = "removes the file" if table.path.name == "utt2dur" else "drops them"
    return [
        Problem(
            where=str(table.path),
            what=text,
            count=len(lacking),
            examples=first(sorted(lacking)),
            remedy=f"{fix_command(table.path.parent)} {remedy}",
        )
    ]


def inconsistent_speakers(loaded: Mapping[str, Table]) -> list[Problem]:
    if "utt2spk" not in loaded or "spk2utt" not in loaded:
        return []
    inverse: dict[str, set[str]] = {}
    for row in loaded["utt2spk"].rows:
        inverse.setdefault(row.value, set()).add(row.id)
    table = loaded["spk2utt"]
    wrong = [row for row in table.rows if inverse.get(row.id) != set(fields(row.value))]
    problems = about(
        table,
        wrong,
        "{n} whose utterances differ from utt2spk",
        "{fix} rebuilds it",
        "untidy",
        "speaker",
    )
    lacking = inverse.keys() - {row.id for row in table.rows}
    if lacking:
        problems.append(
            Problem(
                where=str(table.path),
                what=f"{plural(len(lacking), 'speaker')} of utt2spk missing",
                kind="untidy",
                count=len(lacking),
                examples=first(sorted(lacking)),
                remedy=f"{fix_command(table.path.parent)} rebuilds it",
            )
        )
    return problems


# -- values ----------------------------------------------------------------


def wrong_values(name: str, table: Table) -> list[Problem]:
    """Lines with malformed values."""
    expected = {
        "segments": (
            "<id> <recording> <start> <end>, with a start of at least 0 and an end "
            "after it (or -1, the end of the recording)"
        ),
        "utt2spk": "<id> <speaker>",
    }
    if name in SECONDS:
        expected[name] = "<id> <seconds greater than 0>"
    elif name in COUNTS:
        expected[name] = "<id> <positive integer>"
    elif name == shard_index.FILE:
        expected[name] = "<id> <archive> <offset> <size> <crc32>"
    text = f"{{n}} not of the form {expected.get(name, '<id> <value>')}"
    return about(table, malformed(name, table), text, "{fix} drops them", noun="line")


def malformed(name: str, table: Table) -> list[Row]:
    """The rows that `wrong_values` reports."""
    return [row for row in table.rows if not is_right(name, row.value)]


# -- the disk --------------------------------------------------------------


def missing_audio(table: Table, base: Path | None = None) -> list[Problem]:
    """Files of wav.scp that do not exist."""
    missing = missing_files(table, base)
    relative = any(not Path(row.value).is_absolute() for row in missing)
    start = f" (relative paths start at {base or Path.cwd()})" if relative else ""
    text = f"{{n}} whose file does not exist, first {missing[0].value}{start}" if missing else ""
    return about(table, missing, text, "{fix} drops them", noun="recording")


def missing_files(table: Table, base: Path | None = None) -> list[Row]:
    """The rows whose file does not exist; commands are not run."""
    listing = Listing(base)
    return [
        row
        for row in table.rows
        if row.value and not audio.is_pipe(row.value) and row.value not in listing
    ]


def beyond_the_end(segments: Table, lengths: Mapping[str, float]) -> list[Problem]:
    """Segments that end after their recording."""
    late = [
        row
        for row in segments.rows
        if is_segment(row.value) and Segment.parse(row.value).is_beyond(lengths)
    ]
    return about(
        segments, late, "{n} ending after the recording", "{fix} drops them", noun="segment"
    )


def recording_lengths(loaded: Mapping[str, Table], base: Path | None = None) -> dict[str, float]:
    """Seconds of each recording of segments, from reco2dur or its header; commands are not run."""
    if "segments" not in loaded or "wav.scp" not in loaded:
        return {}
    if "reco2dur" in loaded:
        return {
            row.id: float(row.value) for row in loaded["reco2dur"].rows if is_positive(row.value)
        }
    return audio.lengths(loaded["wav.scp"].values(), base)


# -- characters, lengths, archives -----------------------------------------


def contents(loaded: Mapping[str, Table], lengths: Mapping[str, float]) -> list[Problem]:
    """Problems and notes about file contents; `lengths`: seconds of recordings of known length."""
    problems = [problem for table in loaded.values() for problem in last_line(table)]
    if "text" in loaded:
        problems += odd_characters(loaded["text"]) + mixed_accents(loaded["text"])
    problems += unlike_segments(loaded, lengths) + missing_archives(loaded)
    if "spk2utt" in loaded and "utt2spk" not in loaded:
        what, remedy = (
            "utt2spk is missing, only spk2utt exists",
            f"{fix_command(loaded['spk2utt'].path.parent)} makes it",
        )
        problems.append(
            Problem(where=str(loaded["spk2utt"].path), what=what, remedy=remedy, kind="untidy")
        )
    return problems + notes_of(loaded)


def last_line(table: Table) -> list[Problem]:
    with open(table.path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return []
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) == b"\n":
            return []
    remedy = f"{fix_command(table.path.parent)} adds it; was the file copied completely?"
    where = f"{table.path}:{table.rows[-1].line if table.rows else 1}"
    return [
        Problem(where=where, what="the last line has no line break", remedy=remedy, kind="untidy")
    ]


def unlike_segments(loaded: Mapping[str, Table], lengths: Mapping[str, float]) -> list[Problem]:
    """Durations of utt2dur that contradict segments; segments are right."""
    if "segments" not in loaded or "utt2dur" not in loaded:
        return []
    segments = {
        row.id: Segment.parse(row.value) for row in loaded["segments"].rows if is_segment(row.value)
    }
    wrong = [
        row
        for row in loaded["utt2dur"].rows
        if row.id in segments
        and is_positive(row.value)
        and segments[row.id].is_unlike(row.value, lengths)
    ]
    return about(
        loaded["utt2dur"],
        wrong,
        "{n} whose duration differs from the segment's",
        "{fix} removes the file",
    )


def missing_archives(loaded: Mapping[str, Table]) -> list[Problem]:
    """Archives of feats.scp and utt2shard that do not exist or are too short."""
    problems = []
    if "feats.scp" in loaded:
        missing = without_archive(loaded["feats.scp"])
        text = "{n} whose features do not exist"
        text += f", first {missing[0].value}" if missing else ""
        remedy = "run stage 1 again, or {fix} drops them"
        problems += about(loaded["feats.scp"], missing, text, remedy)
    if shard_index.FILE in loaded:
        table, ends = loaded[shard_index.FILE], {}
        for row in table.rows:
            if is_right(shard_index.FILE, row.value):
                member = shard_index.Member.parse(row.value)
                archive = shard_index.located(table.path.parent, member.archive)
                ends[archive] = max(ends.get(archive, 0), member.offset + member.size)
        for archive, end in ends.items():
            if (what := shard_index.incomplete(archive, end)) is not None:
                what, remedy = what.rsplit("; ", 1)
                problems.append(Problem(where=str(table.path), what=what, remedy=remedy))
    return problems


def without_archive(table: Table) -> list:
    """Rows of feats.scp whose archive is neither at its path nor beside the file."""
    there: dict[str, bool] = {}
    return [
        row
        for row in table.rows
        if row.value and not has_archive(table.path.parent, row.value, there)
    ]


def has_archive(folder: Path, reference: str, there: dict[str, bool]) -> bool:
    """Whether the archive of a reference exists, cached in `there`. Commands are not run."""
    archive = re.sub(r":\d+(\[.*\])?$", "", reference)
    if archive not in there:
        there[archive] = audio.is_pipe(archive) or os.path.exists(
            shard_index.located(folder, archive)
        )
    return there[archive]


# -- notes: legal, but worth knowing ---------------------------------------


def notes_of(loaded: Mapping[str, Table]) -> list[Problem]:
    if "wav.scp" not in loaded:
        return []
    folder, paths = loaded["wav.scp"].path.parent, [row.value for row in loaded["wav.scp"].rows]
    empty = [row.id for row in loaded["text"].rows if not row.value] if "text" in loaded else None
    speakers = (
        [(row.value, row.id) for row in loaded["utt2spk"].rows] if "utt2spk" in loaded else None
    )
    ordered = speakers is None or all(
        a[0] <= b[0] for a, b in pairwise(sorted(speakers, key=lambda pair: pair[1]))
    )
    unused = set()
    if "segments" in loaded:
        used = {fields(row.value)[0] for row in loaded["segments"].rows if row.value}
        unused = {row.id for row in loaded["wav.scp"].rows} - used
    return notes(
        folder, empty, speakers is not None, ordered, len(paths) - len(set(paths)), sorted(unused)
    )


def notes(
    folder: Path,
    empty: list[str] | None,
    has_speakers: bool,
    ordered: bool,
    repeated: int,
    unused: list[str],
) -> list[Problem]:
    """Notes from counts of a data directory.

    empty: ids with an empty transcript, None without text; ordered: sorting utterances by id also
    sorts them by speaker; repeated: lines of wav.scp with the audio of another line; unused:
    recordings without a segment.
    """

    def note(where: str, what: str, ids: list[str] | None = None) -> Problem:
        return Problem(
            where=where,
            what=what,
            remedy="",
            kind="note",
            count=len(ids or [""]),
            examples=first(ids or []),
        )

    made = []
    if empty is None:
        made.append(note(str(folder), "text is missing: all transcripts are empty"))
    elif empty:
        what = f"{plural(len(empty), 'utterance')} with an empty transcript, which is legal"
        made.append(note(str(folder / "text"), what, empty))
    if not has_speakers:
        made.append(note(str(folder), "utt2spk is missing: each utterance is its own speaker"))
    if not ordered:
        what = (
            "utterances sorted by id are not sorted by speaker, as Kaldi's scripts require "
            "(start ids with the speaker)"
        )
        made.append(note(str(folder / "utt2spk"), what))
    if repeated:
        made.append(
            note(
                str(folder / "wav.scp"),
                f"{plural(repeated, 'line')} with the same audio as another line",
            )
        )
    if unused:
        what = f"{plural(len(unused), 'recording')} without a line in segments"
        made.append(note(str(folder / "wav.scp"), what, unused))
    return made


# -- which files exist -----------------------------------------------------


# queries about a folder before it is listed: with a million other files, a few are not worth it
ASKED = 8
REMEMBERED = 256  # number of listed folders to keep


class Listing:
    """`path in listing`: whether a path of wav.scp is a file; each folder is listed only once."""

    def __init__(self, base: Path | None = None) -> None:
        self._base = "" if base is None else str(base)
        self._asked: Counter[str] = Counter()
        self._files = lru_cache(maxsize=REMEMBERED)(_files)

    def __contains__(self, path: str) -> bool:
        path = audio.file_of(path)
        folder, name = os.path.split(os.path.join(self._base, path) if self._base else path)
        self._asked[folder] += 1
        if self._asked[folder] <= ASKED:
            return os.path.isfile(os.path.join(folder, name))
        return name in self._files(folder)


def _files(folder: str) -> frozenset[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except OSError:
        return frozenset()


# -- a folder without a fault ----------------------------------------------


def faultless(folder: Path, base: Path | None = None) -> list[Problem] | None:
    """The notes about a valid data directory; None if it is invalid (`check` finds out why)."""
    try:
        return _Scan(folder, base).run()
    except (Irregular, OSError):
        return None


class _Scan:
    """A single pass over all files, which raises `Irregular` at the first fault."""

    def __init__(self, folder: Path, base: Path | None) -> None:
        self.folder, self.base = folder, base
        self.names = names(folder)
        self.listing = Listing(base)
        self.recordings: dict[str, str] | None = None  # None: there are no segments
        self.lengths: dict[str, float] = {}
        self.used: set[str] = set()  # recordings
        self.archives: dict[str, bool] = {}  # of features: whether they exist
        self.ends: dict[str, int] = {}  # of shards

    def run(self) -> list[Problem]:
        self._check_files()
        if "segments" in self.names:
            self._read_recordings()
        empty: list[str] = []
        accents = Accents()
        ordered, last = True, ""
        # speaker -> number of utterances, sum of the hashes of their ids: enough to compare with
        # spk2utt, without keeping the ids
        members: dict[str, tuple[int, int]] = {}
        audio_seen: set[int] = set()  # hashes, which take less memory than paths
        rows = 0
        for key, values in walk(self.folder, self.names):
            rows += 1
            text = values.get("text")
            if text is not None and not text:
                empty.append(key)
            elif text is not None:
                accents.add(text)
                if accents.mixed or not is_clean(text):
                    raise Irregular(key)
            speaker = values.get("utt2spk")
            if speaker is not None:
                ordered, last = ordered and speaker >= last, speaker
                count, total = members.get(speaker, (0, 0))
                members[speaker] = count + 1, total + hash(key)
            if self.recordings is None:
                path = values["wav.scp"]
                self._expect_audio(path)
                audio_seen.add(hash(path))
            else:
                self._check_segment(values["segments"], values.get("utt2dur"))
            if "feats.scp" in values and not has_archive(
                self.folder, values["feats.scp"], self.archives
            ):
                raise Irregular(key)
            if shard_index.FILE in values:
                self._note_shard(values[shard_index.FILE])
        if "spk2utt" in self.names:
            self._check_speakers(members)
        for archive, end in self.ends.items():
            if shard_index.incomplete(shard_index.located(self.folder, archive), end) is not None:
                raise Irregular(archive)
        repeated = rows - len(audio_seen)
        if self.recordings is not None:
            repeated = len(self.recordings) - len(set(self.recordings.values()))
        unused = sorted(self.recordings.keys() - self.used) if self.recordings is not None else []
        has_text, has_speakers = "text" in self.names, "utt2spk" in self.names
        return notes(
            self.folder, empty if has_text else None, has_speakers, ordered, repeated, unused
        )

    def _check_files(self) -> None:
        if "wav.scp" not in self.names or ("spk2utt" in self.names and "utt2spk" not in self.names):
            raise Irregular("a file is missing")
        for name in self.names:
            with open(self.folder / name, "rb") as stream:
                stream.seek(-1, os.SEEK_END)  # an empty file: OSError
                if stream.read(1) != b"\n":
                    raise Irregular(name)
            if name.startswith(NOT_OF_UTTERANCES) and name != "spk2utt":
                _exhaust(lines(self.folder / name))

    def _read_recordings(self) -> None:
        self.recordings = dict(lines(self.folder / "wav.scp"))
        for path in self.recordings.values():
            self._expect_audio(path)
        if "reco2dur" in self.names:
            self.lengths = {key: float(value) for key, value in lines(self.folder / "reco2dur")}
        else:
            self.lengths = audio.lengths(self.recordings, self.base)

    def _expect_audio(self, path: str) -> None:
        if not audio.is_pipe(path) and path not in self.listing:
            raise Irregular(path)

    def _check_segment(self, value: str, seconds: str | None) -> None:
        segment = Segment.parse(value)
        if segment.recording not in self.recordings or segment.is_beyond(self.lengths):
            raise Irregular(value)
        if seconds is not None and segment.is_unlike(seconds, self.lengths):
            raise Irregular(value)
        self.used.add(segment.recording)

    def _note_shard(self, value: str) -> None:
        member = shard_index.Member.parse(value)
        self.ends[member.archive] = max(
            self.ends.get(member.archive, 0), member.offset + member.size
        )

    def _check_speakers(self, members: dict[str, tuple[int, int]]) -> None:
        """Check that spk2utt is the inverse of utt2spk, by sums of hashes."""
        for speaker, value in lines(self.folder / "spk2utt"):
            ids = fields(value)
            if members.pop(speaker, None) != (len(ids), sum(map(hash, ids))):
                raise Irregular(speaker)
        if members:
            raise Irregular("spk2utt lacks a speaker")


def _exhaust(items: Iterable[object]) -> None:
    for _ in items:
        pass
