"""Write data directories, utterance by utterance and in little memory."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import groupby, pairwise
from pathlib import Path
from typing import TextIO

from asrtool.data.kaldi import form, tables
from asrtool.data.kaldi.form import seconds
from asrtool.errors import UserError
from asrtool.system import atomic
from asrtool.types import Utterance


def write(folder: Path, utterances: Iterable[Utterance]) -> None:
    """Write a data directory; the order of the utterances does not matter.

    The same utterances give the same bytes. Former files that are not needed are removed.
    """
    rows = sorted(utterances, key=lambda utterance: utterance.id)
    for row in rows:
        check(row)
    with Writer(folder, segmented=any(row.recording is not None for row in rows)) as writer:
        for row in rows:
            writer.add(row)


class Writer:
    """Writes a data directory utterance by utterance, without keeping them in memory.

    Any order works, but disorder costs open files: lines go to as many sorted runs (temporary
    files) as needed, and the runs are merged at the end. After an error, the temporary files are
    removed and an earlier data directory is unchanged.
    """

    def __init__(self, folder: Path, segmented: bool) -> None:
        self.folder = Path(folder)
        self.segmented = segmented
        self.folder.mkdir(parents=True, exist_ok=True)
        self._recordings: dict[str, str] = {}  # of segments, which are in another order
        self._runs: list[_Run] = []

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            for run in self._runs:
                run.close()
            if kind is None:
                self._finish()
        finally:
            for path in self.folder.glob(".*.run"):
                path.unlink()

    def add(self, row: Utterance) -> None:
        check(row)
        lines = self._lines(row)
        # append to the first run that stays sorted; already sorted input needs a single run
        run = next((run for run in self._runs if run.last < row.id), None)
        if run is None:
            run = _Run(self.folder, len(self._runs))
            self._runs.append(run)
        run.add(row.id, lines)

    def _lines(self, row: Utterance) -> dict[str, str]:
        """File name -> value of the utterance's line."""
        lines = {
            "text": row.text.strip(" \t"),
            "utt2spk": row.speaker,
            "utt2dur": seconds(row.duration),
        }
        if self.segmented:
            recording = row.recording or row.id
            if self._recordings.setdefault(recording, row.audio) != row.audio:
                both = f"'{self._recordings[recording]}' and '{row.audio}'"
                raise UserError(
                    f"{self.folder}: recording '{recording}' has two audio files: {both}"
                )
            lines["segments"] = (
                f"{recording} {seconds(row.start)} {seconds(row.start + row.duration)}"
            )
        else:
            lines["wav.scp"] = row.audio
        if row.features is not None:
            lines["feats.scp"] = row.features
        if row.num_frames is not None:
            lines["utt2num_frames"] = str(row.num_frames)
        return lines | {f"utt2{name}": value for name, value in row.labels.items()}

    def _finish(self) -> None:
        """Merge the runs, then move all files into place."""
        names = {name for run in self._runs for name in run.files} | (
            {"text", "utt2spk", "utt2dur", "wav.scp"}
        )
        for name in names:
            with ExitStack() as stack:
                runs = [
                    stack.enter_context(read_lines(run.path(name)))
                    for run in self._runs
                    if name in run.files
                ]
                self._save(name, self._merge(runs))
        if self.segmented:
            self._save("wav.scp", [tables.render(self._recordings)])
        with read_lines(self._path("utt2spk")) as lines:
            regular = is_by_speaker(lines)
        with read_lines(self._path("utt2spk")) as lines:
            self._save("spk2utt", by_speaker(lines if regular else sorted(lines, key=speaker_of)))
        names.add("spk2utt")
        for name in set(form.names(self.folder)) - names:
            (self.folder / name).unlink()
        for name in names:
            atomic.put(self._path(name), self.folder / name)

    def _merge(self, runs: Iterable[TextIO]) -> Iterator[str]:
        before = None
        for line in heapq.merge(*runs, key=id_of):
            if id_of(line) == before:
                raise UserError(
                    f"{self.folder}: utterance id '{before}' occurs twice; expected unique ids"
                )
            before = id_of(line)
            yield line

    def _save(self, name: str, lines: Iterable[str]) -> None:
        with open(self._path(name), "w", encoding="utf-8", newline="\n") as stream:
            stream.writelines(lines)

    def _path(self, name: str) -> Path:
        return self.folder / f".{name}.run"


class _Run:
    """Lines of utterances in ascending order, one temporary file per file of the data directory."""

    def __init__(self, folder: Path, number: int) -> None:
        self.last = ""  # id of the last utterance
        self.files: dict[str, TextIO] = {}
        self._folder = folder
        self._number = number

    def path(self, name: str) -> Path:
        return self._folder / f".{name}.{self._number}.run"

    def add(self, key: str, lines: Mapping[str, str]) -> None:
        self.last = key
        for name, value in lines.items():
            if name not in self.files:
                self.files[name] = open(self.path(name), "w", encoding="utf-8", newline="\n")  # noqa: SIM115
            self.files[name].write(f"{key} {value}".rstrip(" ") + "\n")

    def close(self) -> None:
        for file in self.files.values():
            file.close()


def read_lines(path: Path) -> TextIO:
    return open(path, encoding="utf-8", newline="\n")


def id_of(line: str) -> str:
    return line.rstrip("\n").partition(" ")[0]


def speaker_of(line: str) -> str:
    return line.rstrip("\n").partition(" ")[2]


def is_by_speaker(lines: Iterable[str]) -> bool:
    """Whether sorting utt2spk by id also sorts it by speaker, as when ids start with it."""
    return all(first <= second for first, second in pairwise(map(speaker_of, lines)))


def by_speaker(lines: Iterable[str]) -> Iterator[str]:
    """The lines of spk2utt, from those of utt2spk sorted by speaker."""
    for speaker, group in groupby(lines, key=speaker_of):
        yield f"{speaker} {' '.join(map(id_of, group))}\n"


def check(row: Utterance) -> None:
    """Raise UserError for values that the files cannot hold."""
    words = {"id": row.id, "speaker": row.speaker, "recording": row.recording or row.id}
    for what, word in words.items():
        if tables.fields(word) != [word]:
            raise UserError(f"utterance '{row.id}': {what} '{word}' must be a single word")
    for name in row.labels:
        if not form.is_label(f"utt2{name}"):
            expected = "letters, digits and _, but no reserved name of Kaldi (spk, dur ...)"
            raise UserError(
                f"utterance '{row.id}': label '{name}' cannot become a file utt2{name}; expected"
                f" {expected}"
            )
    for what, line in {"audio": row.audio, "transcript": row.text, **row.labels}.items():
        if "\n" in line or "\r" in line:
            raise UserError(f"utterance '{row.id}': {what} contains a line break")
    for what, value in {"audio": row.audio, **row.labels}.items():
        if not tables.fields(value) or value != value.strip(" \t"):
            raise UserError(
                f"utterance '{row.id}': {what} must not be empty, or start or end with a space"
            )
    if not (math.isfinite(row.duration) and row.duration > 0 and row.start >= 0):
        raise UserError(
            f"utterance '{row.id}': {row.duration} s from {row.start} s; expected a finite start"
            " of at least 0 and a duration above 0"
        )
