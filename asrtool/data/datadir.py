"""Kaldi data directories: `wav.scp`, `text`, `utt2spk`, `utt2dur` ... as a list of `Utterance`s, and back.

Beside Kaldi's own files, every `utt2<label>` (and `spk2<label>`, for all utterances of the speaker) is a label:
`utt2accent`, `spk2gender`. Only wav.scp is indispensable: without `text` transcripts are empty, without `utt2spk` every
utterance is a speaker of its own, without `utt2dur` the audio's headers are read. Relative paths start at the current
folder, as in Kaldi.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from asrtool.data import audio, tables
from asrtool.data.datadir_check import DataDirError, check, consistency, is_label, load
from asrtool.data.datadir_fix import FixReport, fix
from asrtool.data.tables import Problem
from asrtool.types import Utterance

Files = Mapping[str, Mapping[str, str]]      # file name -> id -> value

__all__ = ["DataDirError", "FixReport", "Problem", "check", "fix", "read", "write"]


def read(folder: Path, base: Path | None = None, measure: bool = True) -> list[Utterance]:
    """The utterances of a data directory, sorted by id; files are not opened, unless `utt2dur` is missing.

    `base` is where relative paths start, instead of the current folder. With `measure=False`, a duration that no file
    tells is NaN.
    Raises DataDirError where the files contradict each other; `check` lists all that is wrong.
    """
    folder = Path(folder)
    found = load(folder)
    errors = [problem for table in found.values() for problem in table.problems if problem.kind == "error"]
    errors += [problem for problem in consistency(folder, found) if problem.kind == "error"]
    if errors:
        more = f" ({len(errors) - 1} more: `asrtool check_data {folder}` lists them)" if errors[1:] else ""
        raise DataDirError(f"{errors[0]}{more}")
    return _utterances(folder, base, {name: table.values() for name, table in found.items()}, measure)


def _utterances(folder: Path, base: Path | None, files: Files, measure: bool) -> list[Utterance]:
    recordings = {key: _from_base(path, base) for key, path in files["wav.scp"].items()}
    segments = {key: value.split() for key, value in files["segments"].items()} if "segments" in files else None
    ids = sorted(recordings if segments is None else segments)
    speakers = files.get("utt2spk", {})
    texts, features, frames = (files.get(name, {}) for name in ("text", "feats.scp", "utt2num_frames"))
    labels = _labels(files, ids, speakers)
    seconds = _durations(folder, recordings, segments, files.get("utt2dur"), measure)
    beside = _Beside(folder)
    return [
        Utterance(
            id=key,
            audio=recordings[key if segments is None else segments[key][0]],
            duration=seconds[key],
            text=texts.get(key, ""),
            speaker=speakers.get(key, key),
            recording=None if segments is None else segments[key][0],
            start=0.0 if segments is None else float(segments[key][1]),
            labels=labels.get(key, {}),
            features=beside.locate(features[key]) if key in features else None,
            num_frames=int(frames[key]) if key in frames else None,
        )
        for key in ids
    ]


def _from_base(path: str, base: Path | None) -> str:
    return path if base is None or audio.is_pipe(path) else str(Path(base) / path)


def _labels(files: Files, ids: Iterable[str], speakers: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Utterance id -> {label: value}; what is said of an utterance wins over what is said of its speaker."""
    labels: dict[str, dict[str, str]] = {}
    for name in sorted(name for name in files if is_label(name)):               # spk2... come before utt2...
        values = files[name]
        for key in ids:
            value = values.get(speakers.get(key, key) if name.startswith("spk2") else key)
            if value is not None:
                labels.setdefault(key, {})[name[4:]] = value
    return labels


def _durations(
    folder: Path, recordings: Mapping[str, str], segments: Mapping[str, list[str]] | None,
    known: Mapping[str, str] | None, measure: bool,
) -> dict[str, float]:
    if segments is not None:
        return {key: float(end) - float(start) for key, (_, start, end) in segments.items()}
    if known is not None:
        return {key: float(value) for key, value in known.items()}
    if not measure:
        return dict.fromkeys(recordings, math.nan)
    measured = dict(zip(recordings, audio.durations(recordings.values()), strict=True))
    bad = {key: value for key, value in measured.items() if isinstance(value, audio.AudioError)}
    if bad:
        key, error = next(iter(bad.items()))
        count = tables.plural(len(bad), "file")
        raise DataDirError(f"{folder}: there is no utt2dur, and {count} cannot be measured, first {key}: {error}; "
                           f"{tables.fix_command(folder)} drops files that do not exist")
    return measured


class _Beside:
    """Where an archive of feats.scp lies: where the file says or, in a folder that was moved, beside feats.scp."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._found: dict[str, str] = {}

    def locate(self, reference: str) -> str:
        archive, colon, offset = reference.rpartition(":")
        if not colon or "|" in archive:
            return reference
        if archive not in self._found:
            moved = self._folder / os.path.basename(archive)
            self._found[archive] = str(moved) if not os.path.exists(archive) and moved.exists() else archive
        return f"{self._found[archive]}:{offset}"


# -- writing ---------------------------------------------------------------

def write(folder: Path, utterances: Iterable[Utterance]) -> None:
    """Write a data directory; the same utterances in any order give the same bytes.

    Files of an earlier data directory in the folder that these utterances do not need are removed.
    """
    files: dict[str, dict[str, str]] = {name: {} for name in ("wav.scp", "text", "utt2spk", "spk2utt", "utt2dur")}
    rows = sorted(utterances, key=lambda utterance: utterance.id)
    segmented = any(row.recording is not None for row in rows)
    for row in rows:
        _check(row)
        if row.id in files["utt2spk"]:
            raise DataDirError(f"{folder}: utterance id '{row.id}' occurs twice; expected unique ids")
        recording = row.recording or row.id
        if files["wav.scp"].setdefault(recording, row.audio) != row.audio:
            both = f"'{files['wav.scp'][recording]}' and '{row.audio}'"
            raise DataDirError(f"{folder}: recording '{recording}' has two audio files: {both}")
        files["text"][row.id] = row.text.strip()
        files["utt2spk"][row.id] = row.speaker
        files["spk2utt"][row.speaker] = f"{files['spk2utt'].get(row.speaker, '')} {row.id}".strip()
        files["utt2dur"][row.id] = number(row.duration)
        if segmented:
            end = number(row.start + row.duration)
            files.setdefault("segments", {})[row.id] = f"{recording} {number(row.start)} {end}"
        for name, value in row.labels.items():
            files.setdefault(f"utt2{name}", {})[row.id] = value
        if row.features is not None:
            files.setdefault("feats.scp", {})[row.id] = row.features
        if row.num_frames is not None:
            files.setdefault("utt2num_frames", {})[row.id] = str(row.num_frames)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name in load(folder).keys() - files.keys():
        (folder / name).unlink()
    for name, values in files.items():
        tables.write(folder / name, values)


def number(value: float) -> str:
    """Seconds to the microsecond, without trailing zeros."""
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _check(row: Utterance) -> None:
    words = {"id": row.id, "speaker": row.speaker, "recording": row.recording or row.id}
    words |= {f"label {name}": name for name in row.labels}
    for what, word in words.items():
        if len(word.split()) != 1 or word != word.strip():
            raise DataDirError(f"utterance '{row.id}': {what} '{word}' must be one word without spaces")
    for what, line in {"audio": row.audio, "transcript": row.text, **row.labels}.items():
        if "\n" in line or "\r" in line:
            raise DataDirError(f"utterance '{row.id}': {what} has a line break in it")
    if not row.audio.strip() or not all(value.strip() for value in row.labels.values()):
        raise DataDirError(f"utterance '{row.id}': audio and labels must not be empty")
    if not (math.isfinite(row.duration) and row.duration > 0 and row.start >= 0):
        raise DataDirError(f"utterance '{row.id}': {row.duration} s from {row.start} s; expected finite, above 0")
