"""What is wrong with a data directory: all at once, counted, with file:line, examples and the
command that mends it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from asrtool.data import audio, datadir_content, datadir_quick, shard_index, tables
from asrtool.data.datadir_form import (
    COUNTS,
    SECONDS,
    DataDirError,
    Segment,
    about,
    is_label,
    is_positive,
    is_right,
    is_segment,
    is_table,
    names,
)
from asrtool.data.listing import Listing
from asrtool.data.tables import Problem, Row, Table, fields, first, fix_command, plural

__all__ = [
    "DataDirError",
    "check",
    "is_label",
    "is_positive",
    "is_segment",
    "is_table",
    "load",
    "names",
]


def load(folder: Path) -> dict[str, Table]:
    """Every file of a data directory by name, in alphabetical order."""
    return {name: tables.read(folder / name) for name in names(folder)} if folder.is_dir() else {}


def check(folder: Path, base: Path | None = None) -> list[Problem]:
    """All that is wrong with a data directory, and notes. Audio files are looked for, not
    opened.
    """
    folder = Path(folder)
    notes = datadir_quick.faultless(folder, base)
    if notes is not None:
        return notes
    found = load(folder)
    problems = [problem for table in found.values() for problem in table.problems]
    problems += consistency(folder, found)
    lengths = recording_lengths(found, base)
    problems += datadir_content.check(found, lengths)
    if "wav.scp" in found:
        problems += missing_audio(found["wav.scp"], base)
    if "segments" in found and "wav.scp" in found:
        problems += beyond_the_end(found["segments"], lengths)
    return problems


# -- files against each other ----------------------------------------------


def consistency(folder: Path, found: Mapping[str, Table]) -> list[Problem]:
    """What the files say against each other and against their own format."""
    if "wav.scp" not in found:
        what = "there is no wav.scp" if folder.is_dir() else "there is no such folder"
        return [
            Problem(
                where=str(folder), what=what, mend="stage 0 of a recipe writes data directories"
            )
        ]
    problems = [problem for name, table in found.items() for problem in wrong_values(name, table)]
    ids = utterance_ids(found)
    source = "segments" if "segments" in found else "wav.scp"
    if "segments" in found:
        recordings = found["wav.scp"].values()
        rows = [
            row
            for row in found["segments"].rows
            if row.value and fields(row.value)[0] not in recordings
        ]
        problems += about(
            found["segments"], rows, "{n} of recordings that wav.scp lacks", "{fix} drops them"
        )
    for name in ("text", "utt2spk", "utt2dur", "feats.scp", "utt2num_frames"):
        if name in found:
            problems += _lacking(found[name], ids, source)
    for name, table in found.items():
        if name == "text" or name.startswith("utt2") or name in ("feats.scp", "vad.scp"):
            extra = [row for row in table.rows if row.id not in ids]
            without = "audio" if source == "wav.scp" else "a line in segments"
            problems += about(table, extra, f"{{n}} without {without}", "{fix} drops them")
    problems += inconsistent_speakers(found)
    return problems


def utterance_ids(found: Mapping[str, Table]) -> dict[str, Row]:
    table = found.get("segments", found["wav.scp"])
    return {row.id: row for row in reversed(table.rows)}


def _lacking(table: Table, ids: Mapping[str, Row], source: str) -> list[Problem]:
    present = {row.id for row in table.rows}
    lacking = [key for key in ids if key not in present]
    if not lacking:
        return []
    what = f"{plural(len(lacking), 'utterance')} of {source} missing"
    mend = "removes the file" if table.path.name == "utt2dur" else "drops them"
    return [
        Problem(
            where=str(table.path),
            what=what,
            count=len(lacking),
            examples=first(sorted(lacking)),
            mend=f"{fix_command(table.path.parent)} {mend}",
        )
    ]


def inconsistent_speakers(found: Mapping[str, Table]) -> list[Problem]:
    if "utt2spk" not in found or "spk2utt" not in found:
        return []
    inverse: dict[str, set[str]] = {}
    for row in found["utt2spk"].rows:
        inverse.setdefault(row.value, set()).add(row.id)
    table = found["spk2utt"]
    wrong = [row for row in table.rows if inverse.get(row.id) != set(fields(row.value))]
    problems = about(
        table, wrong, "{n} with others than in utt2spk", "{fix} makes it anew", "untidy", "speaker"
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
                mend=f"{fix_command(table.path.parent)} makes it anew",
            )
        )
    return problems


# -- values ----------------------------------------------------------------


def wrong_values(name: str, table: Table) -> list[Problem]:
    """Lines whose value is not what the file holds."""
    expected = {
        "segments": "<id> <recording> <start> <end> with end after start (or -1, the recording's "
        "end), start from 0 on",
        "utt2spk": "<id> <speaker>",
    }
    if name in SECONDS:
        expected[name] = "<id> <seconds above 0>"
    elif name in COUNTS:
        expected[name] = "<id> <whole number above 0>"
    elif name == shard_index.FILE:
        expected[name] = "<id> <archive> <offset> <size> <crc32>"
    what = f"{{n}} not of the form {expected.get(name, '<id> <value>')}"
    return about(table, malformed(name, table), what, "{fix} drops them", noun="line")


def malformed(name: str, table: Table) -> list[Row]:
    """The rows that `wrong_values` reports."""
    return [row for row in table.rows if not is_right(name, row.value)]


# -- the disk --------------------------------------------------------------


def missing_audio(table: Table, base: Path | None = None) -> list[Problem]:
    """Files of wav.scp that do not exist."""
    missing = missing_files(table, base)
    relative = any(not Path(row.value).is_absolute() for row in missing)
    start = f" (relative paths start at {base or Path.cwd()})" if relative else ""
    what = f"{{n}} whose file does not exist, first {missing[0].value}{start}" if missing else ""
    return about(table, missing, what, "{fix} drops them", noun="recording")


def missing_files(table: Table, base: Path | None = None) -> list[Row]:
    """The rows whose file does not exist; commands are not run."""
    listing = Listing(base)
    return [
        row
        for row in table.rows
        if row.value and not audio.is_pipe(row.value) and row.value not in listing
    ]


def beyond_the_end(segments: Table, lengths: Mapping[str, float]) -> list[Problem]:
    """Segments that do not lie in their recording."""
    late = [
        row
        for row in segments.rows
        if is_segment(row.value) and Segment.parse(row.value).is_beyond(lengths)
    ]
    return about(
        segments, late, "{n} ending after the recording", "{fix} drops them", noun="segment"
    )


def recording_lengths(found: Mapping[str, Table], base: Path | None = None) -> dict[str, float]:
    """Seconds of every recording of segments that a file or a readable header tells; commands are
    not run.
    """
    if "segments" not in found or "wav.scp" not in found:
        return {}
    if "reco2dur" in found:
        return {
            row.id: float(row.value) for row in found["reco2dur"].rows if is_positive(row.value)
        }
    return audio.lengths(found["wav.scp"].values(), base)
