"""What is wrong with a data directory beyond form and ids: odd characters, lengths and archives
that do not fit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from asrtool.data import audio, shard_index
from asrtool.data.datadir_form import Segment, about, is_positive, is_right, is_segment
from asrtool.data.tables import Problem, Table, fields, first, fix_command, plural

# white space that Kaldi does not take for a space: U+00A0, U+3000 ...
SPACE = re.compile(r"[^\S \t]")
# characters that show nothing, but would each become a token
HIDDEN = re.compile("[\x00-\x08\x0e-\x1b\x7f\u200b\u200e\u200f\u202a-\u202e\u2060\ufeff]")
# have a meaning of their own
MARK = re.compile(r"(?:^|\s)(?:</?s>|<eps>|#0|<blank>|<sos/eos>)(?:\s|$)")


def is_clean(text: str) -> bool:
    """Whether a transcript has nothing that `check` complains of."""
    return (text.isascii() and text.isprintable() and "<" not in text and "#0" not in text) or not (
        SPACE.search(text) or HIDDEN.search(text) or MARK.search(text)
    )


def cleaned(text: str) -> str:
    """The transcript with plain spaces and without characters that show nothing."""
    return HIDDEN.sub("", SPACE.sub(" ", text)).strip()


def check(found: Mapping[str, Table], lengths: Mapping[str, float]) -> list[Problem]:
    """Problems and notes of files that were read; `lengths`: seconds of each recording whose length
    is known.
    """
    problems = [problem for table in found.values() for problem in last_line(table)]
    if "text" in found:
        problems += odd_characters(found["text"])
    problems += unlike_segments(found, lengths) + missing_archives(found)
    if "spk2utt" in found and "utt2spk" not in found:
        what, mend = (
            "there is no utt2spk, only spk2utt",
            f"{fix_command(found['spk2utt'].path.parent)} makes it",
        )
        problems.append(
            Problem(where=str(found["spk2utt"].path), what=what, mend=mend, kind="untidy")
        )
    return problems + notes_of(found)


def last_line(table: Table) -> list[Problem]:
    with open(table.path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return []
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) == b"\n":
            return []
    mend = f"{fix_command(table.path.parent)} adds it; was the file copied in full?"
    where = f"{table.path}:{table.rows[-1].line if table.rows else 1}"
    return [Problem(where=where, what="the last line has no line break", mend=mend, kind="untidy")]


def odd_characters(table: Table) -> list[Problem]:
    rows = [row for row in table.rows if not is_clean(row.value)]
    kinds = (
        (SPACE, "{n} with white space that is no plain space", "{fix} puts one there"),
        (HIDDEN, "{n} with characters that show nothing", "{fix} removes them"),
        (
            MARK,
            "{n} with a word like <s>, #0 or <eps>, which stands for something else",
            "take it out of the text",
        ),
    )
    return [
        problem
        for pattern, what, mend in kinds
        for problem in about(
            table, (row for row in rows if pattern.search(row.value)), what, mend, "untidy", "line"
        )
    ]


def unlike_segments(found: Mapping[str, Table], lengths: Mapping[str, float]) -> list[Problem]:
    """utt2dur against segments: with both, the latter are right."""
    if "segments" not in found or "utt2dur" not in found:
        return []
    segments = {
        row.id: Segment.parse(row.value) for row in found["segments"].rows if is_segment(row.value)
    }
    wrong = [
        row
        for row in found["utt2dur"].rows
        if row.id in segments
        and is_positive(row.value)
        and segments[row.id].is_unlike(row.value, lengths)
    ]
    return about(
        found["utt2dur"], wrong, "{n} not as long as its segment", "{fix} removes the file"
    )


def missing_archives(found: Mapping[str, Table]) -> list[Problem]:
    """Archives of feats.scp and utt2shard that do not exist, or end too early."""
    problems = []
    if "feats.scp" in found:
        lost = without_archive(found["feats.scp"])
        what = "{n} whose features do not exist" + (f", first {lost[0].value}" if lost else "")
        problems += about(found["feats.scp"], lost, what, "run stage 1 again, or {fix} drops them")
    if shard_index.FILE in found:
        table, ends = found[shard_index.FILE], {}
        for row in table.rows:
            if is_right(shard_index.FILE, row.value):
                member = shard_index.Member.parse(row.value)
                archive = shard_index.located(table.path.parent, member.archive)
                ends[archive] = max(ends.get(archive, 0), member.offset + member.size)
        for archive, end in ends.items():
            if (what := shard_index.incomplete(archive, end)) is not None:
                what, mend = what.rsplit("; ", 1)
                problems.append(Problem(where=str(table.path), what=what, mend=mend))
    return problems


def without_archive(table: Table) -> list:
    """The rows of feats.scp whose archive is neither where it says nor beside the file."""
    there: dict[str, bool] = {}
    return [
        row
        for row in table.rows
        if row.value and not has_archive(table.path.parent, row.value, there)
    ]


def has_archive(folder: Path, reference: str, there: dict[str, bool]) -> bool:
    """Whether the archive of a reference exists; `there` remembers it. Commands are not run."""
    archive = re.sub(r":\d+(\[.*\])?$", "", reference)
    if archive not in there:
        there[archive] = audio.is_pipe(archive) or os.path.exists(
            shard_index.located(folder, archive)
        )
    return there[archive]


# -- notes: legal, but worth knowing ---------------------------------------


def notes_of(found: Mapping[str, Table]) -> list[Problem]:
    if "wav.scp" not in found:
        return []
    folder, paths = found["wav.scp"].path.parent, [row.value for row in found["wav.scp"].rows]
    empty = [row.id for row in found["text"].rows if not row.value] if "text" in found else None
    speakers = (
        [(row.value, row.id) for row in found["utt2spk"].rows] if "utt2spk" in found else None
    )
    ordered = speakers is None or all(
        a[0] <= b[0] for a, b in pairwise(sorted(speakers, key=lambda pair: pair[1]))
    )
    unused = set()
    if "segments" in found:
        used = {fields(row.value)[0] for row in found["segments"].rows if row.value}
        unused = {row.id for row in found["wav.scp"].rows} - used
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
    """empty: ids with an empty transcript, None without text; ordered: utterances by id are ordered
    by speaker too; repeated: lines of wav.scp with the audio of another one; unused: recordings
    without a segment.
    """

    def note(where: str, what: str, ids: list[str] | None = None) -> Problem:
        return Problem(
            where=where,
            what=what,
            mend="",
            kind="note",
            count=len(ids or [""]),
            examples=first(ids or []),
        )

    made = []
    if empty is None:
        made.append(note(str(folder), "there is no text: transcripts are empty"))
    elif empty:
        what = f"{plural(len(empty), 'utterance')} with an empty transcript, which is legal"
        made.append(note(str(folder / "text"), what, empty))
    if not has_speakers:
        made.append(
            note(str(folder), "there is no utt2spk: every utterance is a speaker of its own")
        )
    if not ordered:
        what = (
            "utterances sorted by id are not sorted by speaker, which Kaldi's own scripts want "
            "(begin ids with it)"
        )
        made.append(note(str(folder / "utt2spk"), what))
    if repeated:
        made.append(
            note(
                str(folder / "wav.scp"),
                f"{plural(repeated, 'line')} with the same audio as another",
            )
        )
    if unused:
        what = f"{plural(len(unused), 'recording')} without a line in segments"
        made.append(note(str(folder / "wav.scp"), what, unused))
    return made
