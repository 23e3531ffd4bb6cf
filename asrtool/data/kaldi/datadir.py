"""Kaldi data directories: `wav.scp`, `text`, `utt2spk`, `utt2dur` ... as `Utterance`s, and back.

Besides Kaldi's own files, every `utt2<label>` (and `spk2<label>`, for all utterances of a speaker)
is a label: `utt2accent`, `spk2gender`. Only wav.scp is required. Without `text`, transcripts are
empty; without `utt2spk`, every utterance is its own speaker; without `utt2dur`, the audio is
measured, as it is for segments that end with -1, the end of the recording. Relative paths start at
the current folder, as in Kaldi.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from asrtool.data import audio
from asrtool.data.kaldi import cache, form, reading, tables
from asrtool.data.kaldi.checks import check, consistency, load
from asrtool.data.kaldi.columns import Columns
from asrtool.data.kaldi.fix import FixReport, fix
from asrtool.data.kaldi.form import Irregular, Segment, is_label
from asrtool.data.kaldi.place import Place
from asrtool.data.kaldi.tables import Problem
from asrtool.data.kaldi.utterances import Utterances
from asrtool.data.kaldi.writer import Writer, write
from asrtool.errors import UserError
from asrtool.log import logger, plural
from asrtool.types import Utterance

__all__ = [
    "FixReport",
    "Problem",
    "Writer",
    "base_of",
    "check",
    "complete",
    "fix",
    "lengths",
    "measured",
    "read",
    "log_unmeasured",
    "write",
]

Values = Mapping[str, str]


def read(folder: Path, base: Path | None = None, measure: bool = True) -> Utterances:
    """The utterances of a data directory, sorted by id.

    Audio is opened if no file gives its length. base: the folder where relative paths start, by
    default the current one. With `measure=False`, a length that no file gives is NaN (`measured`
    fills it in). Raises `UserError` if the files contradict each other; `check` lists all problems.
    """
    folder = Path(folder)
    try:
        columns = cache.columns(folder, lambda: _columns(folder))
    except (FileNotFoundError, NotADirectoryError):
        columns = _explained(folder)
    rows = Utterances([replace(columns, place=Place(folder, base))])
    return measured(rows, folder) if measure else rows


def _columns(folder: Path) -> Columns:
    try:
        return reading.columns(folder)
    except (Irregular, OSError):
        return _explained(folder)


def _explained(folder: Path) -> Columns:
    """The columns of any readable data directory; raises `UserError` for the faults of others."""
    loaded = load(folder)
    errors = [
        problem
        for table in loaded.values()
        for problem in table.problems
        if problem.kind == "error"
    ]
    errors += [problem for problem in consistency(folder, loaded) if problem.kind == "error"]
    if errors:
        more = (
            f" ({len(errors) - 1} more: `asrtool check_data {folder}` lists them)"
            if errors[1:]
            else ""
        )
        raise UserError(f"{errors[0]}{more}")
    files = {name: table.values() for name, table in loaded.items()}
    segmented = "segments" in files
    of_utterances = {name: files[name] for name in form.of_utterances(files, segmented)}
    of_speakers = _of_speakers(files)
    return Columns.of(
        _utterance(
            key,
            {name: values[key] for name, values in of_utterances.items() if key in values},
            files["wav.scp"],
            of_speakers,
        )
        for key in sorted(files["segments" if segmented else "wav.scp"])
    )


def base_of(folder: Path, candidates: Iterable[Path]) -> Path | None:
    """The first of `candidates` that contains the first relative path of wav.scp, or None."""
    with open(folder / "wav.scp", "rb") as stream:
        paths = (audio.file_of(tables.split(line)[1]) for line in stream)
        path = next(
            (
                path
                for path in paths
                if path and not audio.is_pipe(path) and not os.path.isabs(path)
            ),
            None,
        )
    return (
        None
        if path is None
        else next((candidate for candidate in candidates if (candidate / path).exists()), None)
    )


# -- one utterance ---------------------------------------------------------


def _utterance(
    key: str, values: Values, audio_of: Values, of_speakers: Mapping[str, Values]
) -> Utterance:
    """The utterance `key` from its value in each file, with the paths that the files have.

    audio_of: wav.scp; of_speakers: label -> speaker -> value.
    """
    recording, start, duration = None, 0.0, float(values.get("utt2dur", math.nan))
    if "segments" in values:
        recording, start, end = Segment.parse(values["segments"])
        duration = math.nan if end is None else end - start
    speaker = values.get("utt2spk", key)
    labels = {name: of[speaker] for name, of in of_speakers.items() if speaker in of}
    labels |= {name[4:]: value for name, value in values.items() if is_label(name)}
    return Utterance(
        id=key,
        audio=audio_of[recording or key],
        duration=duration,
        text=values.get("text", ""),
        speaker=speaker,
        recording=recording,
        start=start,
        labels=labels,
        features=values.get("feats.scp"),
        num_frames=int(values["utt2num_frames"]) if "utt2num_frames" in values else None,
    )


def _of_speakers(files: Mapping[str, Values]) -> dict[str, Values]:
    return {
        name[4:]: values
        for name, values in files.items()
        if name.startswith("spk2") and is_label(name)
    }


# -- lengths that no file gives --------------------------------------------


def lengths(utterances: Iterable[Utterance]) -> list[float | audio.AudioError]:
    """Seconds from the start of each utterance to the end of its audio, or the error.

    Headers are read, commands are run.
    """
    rows = list(utterances)
    paths = list(dict.fromkeys(row.audio for row in rows))
    seconds = dict(zip(paths, audio.durations(paths), strict=True))
    return [_from(row, seconds[row.audio]) for row in rows]


def _from(row: Utterance, seconds: float | audio.AudioError) -> float | audio.AudioError:
    if isinstance(seconds, audio.AudioError):
        return seconds
    if seconds <= 0:
        return audio.AudioError(f"{row.audio}: holds no samples")
    if row.start >= seconds:
        text = f"the segment from {row.start:.3f} s to the end is outside the recording"
        return audio.AudioError(f"{row.audio}: {text}, which is {seconds:.3f} s long")
    return seconds - row.start


def complete(utterances: Iterable[Utterance]) -> tuple[Utterances, dict[str, audio.AudioError]]:
    """The utterances with NaN lengths measured, and id -> error of those that cannot be."""
    rows = Utterances.of(utterances)
    (unknown,) = np.nonzero(np.isnan(rows.durations))
    if not len(unknown):
        return rows, {}
    durations, bad = rows.durations.copy(), {}
    for index, length in zip(unknown, lengths(rows.take(unknown)), strict=True):
        if isinstance(length, audio.AudioError):
            bad[rows.id(index)] = length
        else:
            durations[index] = length
    return rows.with_durations(durations).take(~np.isnan(durations)), bad


def measured(utterances: Iterable[Utterance], folder: Path) -> Utterances:
    """The utterances with all lengths measured. Raises `UserError` if one cannot be."""
    rows = Utterances.of(utterances)
    log_unmeasured(rows, folder)
    made, bad = complete(rows)
    if bad:
        key, error = next(iter(bad.items()))
        count = plural(len(bad), "utterance")
        raise UserError(
            f"{folder}: no file gives the length of {count}, and the audio cannot be measured; "
            f"first {key}: {error}; {tables.fix_command(folder)} drops files that do not exist"
        )
    return made


def log_unmeasured(utterances: Iterable[Utterance], folder: Path) -> bool:
    """Log what must be measured; returns whether anything must."""
    rows = Utterances.of(utterances)
    unknown = rows.take(np.isnan(rows.durations))
    if unknown:
        commands = len({row.audio for row in unknown if audio.is_pipe(row.audio)})
        run = f"; {plural(commands, 'command')} of wav.scp must be run for it" if commands else ""
        logger.info(
            "%s: no file (utt2dur) gives the length of %s; it is measured from the audio%s",
            folder,
            plural(len(unknown), "utterance"),
            run,
        )
    return len(unknown) > 0
