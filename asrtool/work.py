"""Process a data set batch by batch over all ranks, resume after a stop, and report failures.

A `Task` defines what is done with a batch and how results are written. The result for an utterance
is a line: a JSON object with its `id`, or with `id` and `error` if it cannot be read or processed.
Failed utterances are listed in `failed.jsonl` of the output; the others continue. Running the same
command again retries the failed ones.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from asrtool import distributed
from asrtool.data.kaldi import datadir
from asrtool.data.kaldi.utterances import Utterances
from asrtool.data.loader import Dataset, EvalLoader
from asrtool.errors import UserError
from asrtool.log import first_few, logger, plural
from asrtool.system import stamp
from asrtool.system.journal import Journal
from asrtool.system.processes import give_back_memory
from asrtool.types import Batch, Padded, Utterance

# A set has batches of many shapes. oneDNN caches the kernels of 1,024 shapes, which takes hundreds
# of megabytes in a long decoding; a batch needs a few dozen at once. The variable is read when the
# first kernel is created.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
WINDOW = 4000  # utterances that are read, sorted by length and processed together
FAILED = "failed.jsonl"
HOPELESS = 20  # failures without one success that end the command
# errors of a batch, not of the program: out of memory, NaN, audio without frames
PROBLEMS = (RuntimeError, ValueError, MemoryError)


class Task(Protocol):
    """The processing of the utterances of a set."""

    name: str  # name of the stage
    file: str  # name of the file that `write` writes, of one line per utterance
    batch_seconds: float

    def dataset(self, utterances: Sequence[Utterance]) -> Dataset:
        """The dataset that reads the utterances."""

    def lines(self, batch: Batch, seconds: Mapping[str, float]) -> list[dict]:
        """A line for each utterance; raises one of PROBLEMS on failure.

        seconds: durations of the utterances.
        """

    def write(self, target: Path, lines: Iterable[Mapping]) -> None:
        """Write the lines without an error, which come sorted by id, to the folder `target`."""


def through(
    task: Task, data: Path, out: Path, options: Mapping[str, object], force: bool = False
) -> None:
    """Process the set `data` into `out`, unless `out` is up to date.

    Each rank takes every n-th batch; rank 0 joins the results.
    """
    _through(task, data, out, options, force)
    # only once `out` is complete: a stop while it is written must not lose hours of work
    if distributed.is_main():
        _clear(out)


def _through(task: Task, data: Path, out: Path, options: Mapping[str, object], force: bool) -> None:
    with ExitStack() as stack:
        started = None
        if distributed.is_main():
            about = stamp.describe(task.name, [data], options)
            retry = not force and stamp.read(out) == about and (out / FAILED).exists()
            target = stack.enter_context(
                stamp.building(out, task.name, [data], options, force or retry)
            )
            if target is not None:
                started = (target, _begin(task, out, data, about, force, retry))
        # Only rank 0 holds the lock and knows whether there is anything to do.
        started = distributed.broadcast_object(started)
        if started is None:
            return
        target, number = started
        journal = Journal(_part(out), number, distributed.rank())
        total = _work(task, data, journal, out.name)
        journal.close()
        if distributed.is_main():
            # Not a barrier: other ranks may need longer than its timeout.
            journal.wait(distributed.world_size())
            _join(task, target, journal, total, out)


def _part(out: Path) -> Path:
    return out.with_name(out.name + ".part")


def _clear(out: Path) -> None:
    """Remove the journal of a finished run, unless another process has started again."""
    if _part(out).exists():
        with suppress(stamp.StageError, OSError), stamp.locked(out):
            shutil.rmtree(_part(out))


def _begin(task: Task, out: Path, data: Path, about: Mapping, force: bool, retry: bool) -> int:
    """Begin or resume the journal; returns the number of this run. retry: results in `out` are
    kept, only failures are processed again."""
    if force or retry:
        shutil.rmtree(_part(out), ignore_errors=True)
    number = Journal.begin(_part(out), about)
    if number:
        logger.info("%s: resuming an earlier run that was stopped", out)
    if not retry:
        return number
    with open(out / FAILED, encoding="utf-8") as failed:
        count = plural(sum(1 for _ in failed), "utterance")
        logger.info("%s: %s failed; trying again", out, count)
    # The earlier results become run 0 of a new journal. Results and windows are both sorted by id,
    # so one pass splits the former by the latter.
    journal = Journal(_part(out), 0)
    with open(out / task.file, encoding="utf-8") as stream:
        lines = map(json.loads, stream)
        line = next(lines, None)
        for group, window in _windows(datadir.read(data, measure=False)):
            kept = []
            while line is not None and line["id"] <= window[-1].id:
                kept.append(line)
                line = next(lines, None)
            journal.write(group, kept)
    return 1


def _windows(utterances: Utterances) -> Iterator[tuple[int, Utterances]]:
    """The utterances of a set in windows, sorted by id."""
    for number, start in enumerate(range(0, len(utterances), WINDOW)):
        yield number, utterances[start : start + WINDOW]


def _work(task: Task, data: Path, journal: Journal, name: str) -> int:
    """Process window by window, so that memory does not grow with the set; returns the number of
    utterances in the set."""
    utterances = datadir.read(data, measure=False)
    total = len(utterances)
    world = distributed.world_size()
    counts = {"done": 0, "failed": 0}
    shown, reported = None if distributed.is_main() else True, False
    with tqdm(total=total, desc=f"{task.name} {name}", unit="utt", disable=shown) as bar:
        for group, window in _windows(utterances):
            done = journal.done(group)
            bar.update(len(done))
            reported = reported or (distributed.is_main() and datadir.log_unmeasured(window, data))
            window, unmeasured = datadir.complete(window)
            if distributed.is_main():
                lines = [
                    {"id": key, "error": f"{key}: {reason}"} for key, reason in unmeasured.items()
                ]
                journal.write(group, lines)
                _count(lines, counts)
            if not window:
                continue
            seconds = {utterance.id: utterance.duration for utterance in window}
            for batch, unreadable in EvalLoader(
                task.dataset(window), task.batch_seconds, done=done
            ).each():
                lines = [{"id": key, "error": reason} for key, reason in unreadable.items()]
                lines += _attempt(task, batch, seconds) if batch is not None else []
                journal.write(group, lines)
                _count(lines, counts)
                # Rank 0 shows the bar and assumes that the other ranks are as fast.
                bar.update(min(len(lines) * world, total - bar.n))
            # glibc keeps freed memory of many sizes; in a long run it adds up.
            give_back_memory()
    return total


def _attempt(task: Task, batch: Batch, seconds: Mapping[str, float]) -> list[dict]:
    """The lines of a batch; a failing batch is halved until the failing utterances are alone."""
    try:
        return task.lines(batch, seconds)
    except PROBLEMS as error:
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
        if len(batch) == 1:
            return [
                {
                    "id": batch.ids[0],
                    "error": f"{batch.ids[0]}: {str(error).strip() or type(error).__name__}",
                }
            ]
    middle = len(batch) // 2
    halves = [_rows(batch, slice(0, middle)), _rows(batch, slice(middle, None))]
    return [line for half in halves for line in _attempt(task, half, seconds)]


def _rows(batch: Batch, chosen: slice) -> Batch:
    """A slice of a batch, padded only to its own longest utterance."""
    lengths = batch.inputs.lengths[chosen]
    inputs = Padded(batch.inputs.data[chosen, : int(lengths.max())], lengths)
    targets = Padded(batch.targets.data[chosen], batch.targets.lengths[chosen])
    labels = {name: values[chosen] for name, values in batch.labels.items()}
    return replace(
        batch,
        ids=batch.ids[chosen],
        inputs=inputs,
        targets=targets,
        labels=labels,
        texts=batch.texts[chosen],
    )


def _count(lines: Sequence[Mapping], counts: dict[str, int]) -> None:
    """Count results; raises `UserError` after HOPELESS failures without one success."""
    failures = [line for line in lines if "error" in line]
    counts["done"] += len(lines) - len(failures)
    counts["failed"] += len(failures)
    if not counts["done"] and counts["failed"] >= HOPELESS:
        raise UserError(
            f"none of {counts['failed']} utterances succeeded so far; the last reason: "
            f"{failures[-1]['error']}"
        )


def _join(task: Task, target: Path, journal: Journal, total: int, out: Path) -> None:
    """Write the results and the failures, and log how many failed."""
    failed: list[dict] = []
    joined = 0

    def good() -> Iterator[dict]:
        nonlocal joined
        for group in range(-(-total // WINDOW)):
            for line in journal.lines(group):
                joined += 1
                if "error" in line:
                    failed.append(line)
                else:
                    yield line

    # `good` fills `failed` while it is read, so `task.write` must consume it all.
    first = next(lines := good(), None)
    if first is None:
        raise UserError(
            f"{out}: none of {total} utterances succeeded; the last reason: {failed[-1]['error']}"
        )
    task.write(target, itertools.chain([first], lines))
    if joined != total:
        text = (
            f"{total - joined} of {total} utterances have neither a result nor an error in "
            f"{journal.folder}"
        )
        raise UserError(f"{out}: {text}; run the same command again")
    if not failed:
        return
    with open(target / FAILED, "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in failed)
    ids = first_few([line["id"] for line in failed])
    logger.error(
        "%s: %d of %s failed; see %s for the reasons: %s",
        out,
        len(failed),
        plural(total, "utterance"),
        FAILED,
        ids,
    )
