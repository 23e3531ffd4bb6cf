"""Lengths that no file of a data directory tells: those of the audio. Headers are read, commands
are run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from asrtool.data import audio, tables
from asrtool.data.datadir_form import DataDirError
from asrtool.log import logger
from asrtool.types import Utterance


def lengths(rows: Sequence[Utterance]) -> list[float | audio.AudioError]:
    """Seconds from the start of each utterance to the end of its audio, or why nobody can tell
    them.
    """
    paths = list(dict.fromkeys(row.audio for row in rows))
    found = dict(zip(paths, audio.durations(paths), strict=True))
    return [_from(row, found[row.audio]) for row in rows]


def _from(row: Utterance, seconds: float | audio.AudioError) -> float | audio.AudioError:
    if isinstance(seconds, audio.AudioError):
        return seconds
    if seconds <= 0:
        return audio.AudioError(f"{row.audio}: holds no samples")
    if row.start >= seconds:
        what = f"the segment from {row.start:.3f} s to the end does not lie in the recording"
        return audio.AudioError(f"{row.audio}: {what}, which has {seconds:.3f} s")
    return seconds - row.start


def complete(rows: Sequence[Utterance]) -> tuple[list[Utterance], dict[str, audio.AudioError]]:
    """The utterances with every length measured that was NaN, and id -> why of those where that is
    impossible.
    """
    unknown = [row for row in rows if math.isnan(row.duration)]
    found = dict(zip((row.id for row in unknown), lengths(unknown), strict=True)) if unknown else {}
    bad = {key: length for key, length in found.items() if isinstance(length, audio.AudioError)}
    return [
        replace(row, duration=found.get(row.id, row.duration)) for row in rows if row.id not in bad
    ], bad


def measured(rows: Sequence[Utterance], folder: Path) -> list[Utterance]:
    """The utterances of a data directory with every length. Raises DataDirError where one cannot be
    measured.
    """
    tell(rows, folder)
    made, bad = complete(rows)
    if bad:
        key, error = next(iter(bad.items()))
        count = tables.plural(len(bad), "utterance")
        raise DataDirError(
            f"{folder}: the length of {count} is in no file, and the audio cannot be measured, "
            "first "
            f"{key}: {error}; {tables.fix_command(folder)} drops files that do not exist"
        )
    return made


def tell(rows: Sequence[Utterance], folder: Path) -> bool:
    """Say what has to be measured; whether it is anything."""
    unknown = [row for row in rows if math.isnan(row.duration)]
    if unknown:
        commands = len({row.audio for row in unknown if audio.is_pipe(row.audio)})
        run = (
            f"; {tables.plural(commands, 'command')} of wav.scp must be run for it"
            if commands
            else ""
        )
        logger.info(
            "%s: the length of %s is in no file (utt2dur) and is taken from the audio%s",
            folder,
            tables.plural(len(unknown), "utterance"),
            run,
        )
    return bool(unknown)
