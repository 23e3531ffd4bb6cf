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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from asrtool.data import audio
from asrtool.data.kaldi import form, tables
from asrtool.data.kaldi.checks import check, consistency, load
from asrtool.data.kaldi.fix import FixReport, fix
from asrtool.data.kaldi.form import Irregular, Segment, is_label
from asrtool.data.kaldi.tables import Problem
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
    "iterate",
    "lengths",
    "measured",
    "read",
    "log_unmeasured",
    "write",
]

Values = Mapping[str, str]


def read(folder: Path, base: Path | None = None, measure: bool = True) -> list[Utterance]:
    """The utterances of a data directory, sorted by id.

    Audio is opened if no file gives its length. base: the folder where relative paths start, by
    default the current one. With `measure=False`, a length that no file gives is NaN (`measured`
    fills it in). Raises `UserError` if the files contradict each other; `check` lists all problems.
    """
    folder = Path(folder)
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
    make = _Assembler(folder, base, files["wav.scp"] if segmented else None, _of_speakers(files))
    of_utterances = {name: files[name] for name in form.of_utterances(files, segmented)}
    rows = [
        make(key, {name: values[key] for name, values in of_utterances.items() if key in values})
        for key in sorted(files["segments" if segmented else "wav.scp"])
    ]
    return measured(rows, folder) if measure else rows


def iterate(folder: Path) -> tuple[int, Iterable[Utterance]]:
    """The number of utterances, and the utterances of `read(measure=False)` one by one.

    It needs little memory, unless the folder is not sorted or has another fault: then it is read at
    once, as by `read`.
    """
    folder = Path(folder)
    try:
        return sum(1 for _ in _stream(folder)), _stream(folder)
    except (Irregular, OSError):
        utterances = read(folder, measure=False)
        return len(utterances), utterances


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


class _Assembler:
    """Makes utterances from their lines in each file."""

    def __init__(
        self,
        folder: Path,
        base: Path | None,
        recordings: Values | None,
        of_speakers: Mapping[str, Values],
    ) -> None:
        self.folder = folder
        self.base = base
        self.recordings = recordings  # where there are segments
        self.of_speakers = of_speakers  # label -> speaker -> value
        self.archives: dict[str, str] = {}

    def __call__(self, key: str, values: Values) -> Utterance:
        """The utterance `key`, from its value in each file."""
        recording, start = None, 0.0
        path = values.get("wav.scp", "")
        if self.recordings is not None:
            recording, start, end = Segment.parse(values["segments"])
            path, duration = self.recordings[recording], math.nan if end is None else end - start
        else:
            duration = float(values.get("utt2dur", math.nan))
        speaker = values.get("utt2spk", key)
        labels = {name: of[speaker] for name, of in self.of_speakers.items() if speaker in of}
        labels |= {name[4:]: value for name, value in values.items() if is_label(name)}
        path_from_base = _from_base(path, self.base)
        return Utterance(
            id=key,
            audio=self.locate(path_from_base) if audio.member(path_from_base) else path_from_base,
            duration=duration,
            text=values.get("text", ""),
            speaker=speaker,
            recording=recording,
            start=start,
            labels=labels,
            features=self.locate(values["feats.scp"]) if "feats.scp" in values else None,
            num_frames=int(values["utt2num_frames"]) if "utt2num_frames" in values else None,
        )

    def locate(self, reference: str) -> str:
        """Path of an archive: as stored or, in a moved folder, beside feats.scp or wav.scp."""
        archive, colon, offset = reference.rpartition(":")
        if not colon or "|" in archive:
            return reference
        if archive not in self.archives:
            moved = self.folder / os.path.basename(archive)
            self.archives[archive] = (
                str(moved) if not os.path.exists(archive) and moved.exists() else archive
            )
        return f"{self.archives[archive]}:{offset}"


def _from_base(path: str, base: Path | None) -> str:
    return path if base is None or audio.is_pipe(path) else str(Path(base) / path)


def _of_speakers(files: Mapping[str, Values]) -> dict[str, Values]:
    return {
        name[4:]: values
        for name, values in files.items()
        if name.startswith("spk2") and is_label(name)
    }


# -- one by one ------------------------------------------------------------


def _stream(folder: Path) -> Iterator[Utterance]:
    names = form.names(folder)
    segmented = "segments" in names
    of_speakers = [name for name in names if name.startswith("spk2") and is_label(name)]
    small = {name: dict(form.lines(folder / name)) for name in of_speakers}
    recordings = dict(form.lines(folder / "wav.scp")) if segmented else None
    make = _Assembler(folder, None, recordings, _of_speakers(small))
    for key, values in form.walk(folder, names):
        if segmented and Segment.parse(values["segments"]).recording not in recordings:
            raise Irregular(f"{folder / 'segments'}: no audio for {key}")
        yield make(key, values)


# -- lengths that no file gives --------------------------------------------


def lengths(rows: Sequence[Utterance]) -> list[float | audio.AudioError]:
    """Seconds from the start of each utterance to the end of its audio, or the error.

    Headers are read, commands are run.
    """
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


def complete(rows: Sequence[Utterance]) -> tuple[list[Utterance], dict[str, audio.AudioError]]:
    """The utterances with NaN lengths measured, and id -> error of those that cannot be."""
    unknown = [row for row in rows if math.isnan(row.duration)]
    durations = (
        dict(zip((row.id for row in unknown), lengths(unknown), strict=True)) if unknown else {}
    )
    bad = {key: length for key, length in durations.items() if isinstance(length, audio.AudioError)}
    return [
        replace(row, duration=durations.get(row.id, row.duration))
        for row in rows
        if row.id not in bad
    ], bad


def measured(rows: Sequence[Utterance], folder: Path) -> list[Utterance]:
    """The utterances with all lengths measured. Raises `UserError` if one cannot be."""
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


def log_unmeasured(rows: Sequence[Utterance], folder: Path) -> bool:
    """Log what must be measured; returns whether anything must."""
    unknown = [row for row in rows if math.isnan(row.duration)]
    if unknown:
        commands = len({row.audio for row in unknown if audio.is_pipe(row.audio)})
        run = f"; {plural(commands, 'command')} of wav.scp must be run for it" if commands else ""
        logger.info(
            "%s: no file (utt2dur) gives the length of %s; it is measured from the audio%s",
            folder,
            plural(len(unknown), "utterance"),
            run,
        )
    return bool(unknown)
