"""Fix a data directory like Kaldi's fix_data_dir.sh: sort it, drop lines without a counterpart.

Everything that was dropped is reported with a reason.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asrtool.data.kaldi import checks, tables, transcripts
from asrtool.data.kaldi.form import Segment
from asrtool.data.kaldi.tables import Table, fields
from asrtool.errors import UserError
from asrtool.log import plural
from asrtool.system import atomic

Files = dict[str, dict[str, str]]  # file name -> id -> value
# an utterance must be in each of these that exists
NEEDED = ("text", "utt2spk", "feats.scp", "utt2num_frames")


@dataclass
class FixReport:
    """The result of `fix`.

    kept, total: numbers of utterances; dropped: reason -> ids; changed: names of the files that
    were rewritten or removed.
    """

    total: int
    kept: int = 0
    dropped: dict[str, list[str]] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)

    def drop(self, reason: str, ids: Iterable[str]) -> None:
        ids = sorted(ids)
        if ids:
            self.dropped.setdefault(reason, []).extend(ids)

    def __str__(self) -> str:
        lines = [f"kept {plural(self.kept, 'utterance')} out of {self.total}"]
        for reason, ids in self.dropped.items():
            more = ", ..." if len(ids) > tables.SHOWN else ""
            lines.append(f"dropped {len(ids)}: {reason} ({', '.join(tables.first(ids))}{more})")
        changed = (
            f"{', '.join(self.changed)} (the original files are in .backup/)"
            if self.changed
            else "nothing"
        )
        return "\n".join([*lines, f"changed {changed}"])


def fix(folder: Path, base: Path | None = None) -> FixReport:
    """Sort and intersect the files of `folder`; the original files go to `.backup/`.

    Valid files are not touched. Raises `UserError`, and changes nothing, if a file is not UTF-8 or
    no utterance would be left.
    """
    folder = Path(folder)
    loaded = checks.load(folder)
    if "wav.scp" not in loaded:
        raise UserError(str(checks.consistency(folder, loaded)[0]))
    unreadable = [
        problem
        for table in loaded.values()
        for problem in table.problems
        if "UTF-8" in problem.what
    ]
    if unreadable:
        raise UserError(f"{unreadable[0]}; nothing was changed")
    report = FixReport(total=len(checks.utterance_ids(loaded)))
    files = well_formed(loaded, report)
    lengths = checks.recording_lengths(loaded, base)
    drop_recordings(loaded, files, report, base, lengths)
    intersect(files, report, lengths)
    if not report.kept:
        raise UserError(f"{folder}: no utterance would be left, so nothing was changed\n{report}")
    replace(folder, loaded, files, report)
    return report


def well_formed(loaded: Mapping[str, Table], report: FixReport) -> Files:
    """The files without malformed lines, and without ids that have two different values."""
    files = {name: table.values() for name, table in loaded.items()}
    if "text" in files:
        # NFC only if the file mixes both forms: consistent text stays as it is
        mixed = transcripts.mixed_accents(loaded["text"])
        files["text"] = {
            key: transcripts.cleaned(unicodedata.normalize("NFC", value) if mixed else value)
            for key, value in files["text"].items()
        }
    if "spk2utt" in files and "utt2spk" not in files:
        files["utt2spk"] = {
            key: speaker for speaker, ids in files["spk2utt"].items() for key in fields(ids)
        }
    for name, table in loaded.items():
        malformed = checks.malformed(name, table)
        report.drop(f"two different lines in {name}", table.conflicts)
        report.drop(f"a malformed line in {name}", {row.id for row in malformed} - table.conflicts)
        for key in {row.id for row in malformed} | table.conflicts:
            del files[name][key]
    return files


def drop_recordings(
    loaded: Mapping[str, Table],
    files: Files,
    report: FixReport,
    base: Path | None,
    lengths: Mapping[str, float],
) -> None:
    """Drop recordings without a file from wav.scp, and segments outside their recording."""
    missing = {row.id for row in checks.missing_files(loaded["wav.scp"], base)} & files[
        "wav.scp"
    ].keys()
    report.drop("the audio file does not exist", missing)
    files["wav.scp"] = without(files["wav.scp"], missing)
    if "feats.scp" in files:
        dropped = {row.id for row in checks.without_archive(loaded["feats.scp"])} & files[
            "feats.scp"
        ].keys()
        report.drop("the features do not exist", dropped)
        files["feats.scp"] = without(files["feats.scp"], dropped)
    if "segments" not in files:
        return
    segments = {key: Segment.parse(value) for key, value in files["segments"].items()}
    dropped = {
        key for key, segment in segments.items() if segment.recording not in files["wav.scp"]
    }
    late = {key for key, segment in segments.items() if segment.is_beyond(lengths)}
    report.drop("no audio for its recording", dropped)
    report.drop("the segment ends after the recording", late - dropped)
    files["segments"] = without(files["segments"], dropped | late)


def intersect(files: Files, report: FixReport, lengths: Mapping[str, float]) -> None:
    """Keep utterances that are in every file, and their recordings and speakers; remake spk2utt."""
    source = files.get("segments", files["wav.scp"])
    if "text" in files:
        dropped = {key for ids in report.dropped.values() for key in ids}
        report.drop("a transcript without audio", files["text"].keys() - source.keys() - dropped)
    kept = set(source)
    for name in NEEDED:
        if name in files:
            report.drop(f"no line in {name}", kept - files[name].keys())
            kept &= files[name].keys()
    report.kept = len(kept)

    recordings = {fields(source[key])[0] for key in kept} if "segments" in files else kept
    speakers = {files["utt2spk"][key] for key in kept} if "utt2spk" in files else kept
    for name, values in files.items():
        of_speakers = name.startswith("spk2") or name == "cmvn.scp"
        keys = (
            recordings
            if name == "wav.scp" or name.startswith("reco2")
            else speakers
            if of_speakers
            else kept
        )
        files[name] = {key: value for key, value in values.items() if key in keys}
    if "utt2dur" in files and (files["utt2dur"].keys() != kept or unlike_segments(files, lengths)):
        del files["utt2dur"]  # without the file, durations are measured
    if "utt2spk" in files:
        files["spk2utt"] = {}
        for key in sorted(kept):
            speaker = files["utt2spk"][key]
            files["spk2utt"][speaker] = f"{files['spk2utt'].get(speaker, '')} {key}".strip()


def unlike_segments(files: Files, lengths: Mapping[str, float]) -> bool:
    """Whether utt2dur contradicts segments."""
    return any(
        Segment.parse(value).is_unlike(files["utt2dur"][key], lengths)
        for key, value in files.get("segments", {}).items()
    )


def without(values: Mapping[str, str], ids: Iterable[str]) -> dict[str, str]:
    ids = set(ids)
    return {key: value for key, value in values.items() if key not in ids}


def replace(folder: Path, loaded: Mapping[str, Table], files: Files, report: FixReport) -> None:
    """Write the files that changed, after all of them were copied to .backup/."""
    wanted = {name: tables.render(values).encode() for name, values in files.items() if values}
    report.changed = sorted(
        name
        for name in loaded.keys() | wanted.keys()
        if name not in wanted
        or name not in loaded
        or loaded[name].path.read_bytes() != wanted[name]
    )
    if not report.changed:
        return
    backup = folder / ".backup"
    backup.mkdir(exist_ok=True)
    for table in loaded.values():
        shutil.copy2(table.path, backup / table.path.name)
    atomic.sync_folder(backup)
    for name in report.changed:
        if name in wanted:
            tables.write(folder / name, files[name])
        else:
            (folder / name).unlink()
