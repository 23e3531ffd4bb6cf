"""Open all audio of a data directory and report faults that `datadir.check` cannot see."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from asrtool.data import audio
from asrtool.data.kaldi import checks, form
from asrtool.data.kaldi.tables import Problem, Row, Table
from asrtool.log import plural

DIFFERENCE = 0.1  # seconds by which utt2dur may be off
Measured = tuple[int, float] | audio.AudioError  # rate in Hz and seconds, or the error


def check_audio(
    folder: Path, base: Path | None = None, rate: int = 16000, threads: int = 4
) -> list[Problem]:
    """Read each utterance: a problem for each unusable one, for wrong durations and sampling rates.

    Problems that `datadir.check` reports are not repeated.
    """
    tables_found = checks.load(Path(folder))
    if "wav.scp" not in tables_found:
        return []
    rows = readable(tables_found, base)

    def open_one(item: tuple[Row, str, float, float | None]) -> Measured:
        _, path, start, duration = item
        try:
            samples, rate = audio.load(path, start, duration)
        except audio.AudioError as error:
            return error
        return rate, len(samples) / rate

    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=len(rows), unit="utt", disable=None) as bar,
    ):
        results: list[tuple[Row, Measured]] = []
        for item, result in zip(rows, pool.map(open_one, rows), strict=True):
            results.append((item[0], result))
            bar.update()
    source = tables_found.get("segments", tables_found["wav.scp"]).path
    remedy = "remove the line, or repair the file"
    problems = [
        Problem(where=f"{source}:{row.line}", what=f"{row.id}: {result}", remedy=remedy)
        for row, result in results
        if isinstance(result, audio.AudioError)
    ]
    measured = {
        row.id: result for row, result in results if not isinstance(result, audio.AudioError)
    }
    return problems + wrong_durations(tables_found, measured) + other_rates(source, measured, rate)


def readable(
    loaded: Mapping[str, Table], base: Path | None
) -> list[tuple[Row, str, float, float | None]]:
    """Line, audio, start and duration of each utterance that has a file or command."""
    missing = {row.id for row in checks.missing_files(loaded["wav.scp"], base)}
    paths = {
        key: path if audio.is_pipe(path) or base is None else str(base / path)
        for key, path in loaded["wav.scp"].values().items()
        if path and key not in missing
    }
    if "segments" not in loaded:
        return [
            (row, paths[row.id], 0.0, None) for row in loaded["wav.scp"].rows if row.id in paths
        ]
    items = []
    for row in loaded["segments"].rows:
        if not form.is_segment(row.value):
            continue
        segment = form.Segment.parse(row.value)
        if segment.recording in paths:
            items.append((row, paths[segment.recording], segment.start, segment.duration({})))
    return items


def wrong_durations(
    loaded: Mapping[str, Table], measured: Mapping[str, tuple[int, float]]
) -> list[Problem]:
    if "utt2dur" not in loaded:
        return []
    table = loaded["utt2dur"]
    wrong = [
        row
        for row in table.rows
        if row.id in measured
        and form.is_positive(row.value)
        and abs(float(row.value) - measured[row.id][1]) > DIFFERENCE
    ]
    if not wrong:
        return []
    first = wrong[0]
    text = f"{plural(len(wrong), 'utterance')} whose duration differs from the audio"
    example = f"{first.id} lasts {measured[first.id][1]:.3f} s, not {float(first.value):.3f} s"
    remedy = "remove utt2dur; missing durations are measured"
    return [
        Problem(
            where=f"{table.path}:{first.line}",
            what=text,
            remedy=remedy,
            count=len(wrong),
            examples=(example,),
        )
    ]


def other_rates(
    source: Path, measured: Mapping[str, tuple[int, float]], rate: int
) -> list[Problem]:
    counts = Counter(other for other, _ in measured.values() if other != rate)
    return [
        Problem(
            where=str(source),
            kind="note",
            remedy="",
            count=count,
            what=(f"{plural(count, 'utterance')} at {other} Hz; stage 1 resamples to {rate} Hz"),
        )
        for other, count in sorted(counts.items())
    ]
