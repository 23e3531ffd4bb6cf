"""Working through a data set: batch by batch, shared out over ranks, going on after a stop, naming
what fails.

A `Task` says what is done with a batch and how the results are written. What comes of an utterance
is a line: a JSON object with its `id`, or with `id` and `error` where it cannot be read or worked
on. Such utterances are listed in `failed.jsonl` of the output; the others go on. The same command
tries the failed ones again.
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
from asrtool.data.loader import Dataset, EvalLoader
from asrtool.log import first_few, logger
from asrtool.system import stamp
from asrtool.system.journal import Journal
from asrtool.system.processes import give_back_memory
from asrtool.types import Batch, Padded, Utterance

# A set has batches of many shapes. oneDNN keeps the kernels of 1,024, which on a long decoding grow
# to hundreds of megabytes; a batch needs a few dozen at once. The variable is read when the first
# kernel is made.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256")
WINDOW = 4000  # utterances that are read, sorted by length and worked on together
FAILED = "failed.jsonl"
HOPELESS = 20  # failures without one success end the command
# of one utterance: out of memory, NaN, an audio without frames
PROBLEMS = (RuntimeError, ValueError, MemoryError)


class WorkError(RuntimeError):
    """Nothing can be done with this set; the message gives the first reason."""


class Task(Protocol):
    """What is done with the utterances of a set."""

    name: str  # of the stage
    file: str  # that `write` puts the lines into
    batch_seconds: float

    def dataset(self, utterances: Sequence[Utterance]) -> Dataset:
        """How they are read."""

    def lines(self, batch: Batch, seconds: Mapping[str, float]) -> list[dict]:
        """A line for each utterance; `seconds`: their durations. Raises one of PROBLEMS where that
        is impossible.
        """

    def write(self, target: Path, lines: Iterable[Mapping]) -> None:
        """All lines without an error, sorted by id, into the folder `target`; and a message on how
        it went.
        """


def through(
    task: Task, data: Path, out: Path, options: Mapping[str, object], force: bool = False
) -> None:
    """Work through the set `data` into `out`, unless `out` is what `data` and `options` give
    already; ranks take every n-th batch, rank 0 joins what they wrote."""
    _through(task, data, out, options, force)
    # not before `out` is in its place: hours of work must not hang on its last files
    if distributed.is_main():
        _clear(out)


def _through(task: Task, data: Path, out: Path, options: Mapping[str, object], force: bool) -> None:
    with ExitStack() as stack:
        started = None
        if distributed.is_main():
            about = stamp.describe(task.name, [data], options)
            again = not force and stamp.read(out) == about and (out / FAILED).exists()
            target = stack.enter_context(
                stamp.building(out, task.name, [data], options, force or again)
            )
            if target is not None:
                started = (target, _begin(task, out, data, about, force, again))
        started = distributed.broadcast_object(started)
        if started is None:
            return
        target, number = started
        journal = Journal(_part(out), number, distributed.rank())
        total = _work(task, data, journal, out.name)
        journal.close()
        if distributed.is_main():
            journal.wait(distributed.world_size())
            _join(task, target, journal, total, out)


def _part(out: Path) -> Path:
    return out.with_name(out.name + ".part")


def _clear(out: Path) -> None:
    """Remove the journal of what is finished, unless another process has begun anew."""
    if _part(out).exists():
        with suppress(stamp.StageError, OSError), stamp.locked(out):
            shutil.rmtree(_part(out))


def _begin(task: Task, out: Path, data: Path, about: Mapping, force: bool, again: bool) -> int:
    """The number of this run; `again`: what `out` holds is kept and only failures are tried once
    more.
    """
    if force or again:
        shutil.rmtree(_part(out), ignore_errors=True)
    number = Journal.begin(_part(out), about)
    if number:
        logger.info("%s: an earlier run was stopped; going on from there", out)
    if not again:
        return number
    with open(out / FAILED, encoding="utf-8") as failed:
        logger.info("%s: %d utterances failed and are tried again", out, sum(1 for _ in failed))
    journal = Journal(_part(out), 0)
    with open(out / task.file, encoding="utf-8") as stream:
        lines = map(json.loads, stream)
        line = next(lines, None)
        for group, window in _windows(data):
            kept = []
            while line is not None and line["id"] <= window[-1].id:
                kept.append(line)
                line = next(lines, None)
            journal.write(group, kept)
    return 1


def _windows(data: Path) -> Iterator[tuple[int, list[Utterance]]]:
    """The utterances of a set, some at a time, in the order of their ids."""
    rows = iter(datadir.iterate(data)[1])
    for number in itertools.count():
        window = list(itertools.islice(rows, WINDOW))
        if not window:
            return
        yield number, window


def _work(task: Task, data: Path, journal: Journal, name: str) -> int:
    """Window by window, so that memory does not grow with the set; gives the number of
    utterances.
    """
    total = datadir.iterate(data)[0]
    world = distributed.world_size()
    counts = {"done": 0, "failed": 0}
    shown, reported = None if distributed.is_main() else True, False
    with tqdm(total=total, desc=f"{task.name} {name}", unit="utt", disable=shown) as bar:
        for group, window in _windows(data):
            done = journal.done(group)
            bar.update(len(done))
            reported = reported or (distributed.is_main() and datadir.tell(window, data))
            window, unmeasured = datadir.complete(window)
            if distributed.is_main():
                lines = [{"id": key, "error": f"{key}: {why}"} for key, why in unmeasured.items()]
                journal.write(group, lines)
                _count(lines, counts)
            if not window:
                continue
            seconds = {utterance.id: utterance.duration for utterance in window}
            for batch, unreadable in EvalLoader(
                task.dataset(window), task.batch_seconds, done=done
            ).each():
                lines = [{"id": key, "error": why} for key, why in unreadable.items()]
                lines += _attempt(task, batch, seconds) if batch is not None else []
                journal.write(group, lines)
                _count(lines, counts)
                bar.update(min(len(lines) * world, total - bar.n))
            give_back_memory()
    return total


def _attempt(task: Task, batch: Batch, seconds: Mapping[str, float]) -> list[dict]:
    """What fails together is tried apart."""
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
    """Some utterances of a batch, with no more padding than they need."""
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
    """Keep count; end where nothing but failures comes."""
    failures = [line for line in lines if "error" in line]
    counts["done"] += len(lines) - len(failures)
    counts["failed"] += len(failures)
    if not counts["done"] and counts["failed"] >= HOPELESS:
        raise WorkError(
            f"{counts['failed']} utterances and not one success; the last reason: "
            f"{failures[-1]['error']}"
        )


def _join(task: Task, target: Path, journal: Journal, total: int, out: Path) -> None:
    """Hand the lines to the task, write those of failures, and say how many there are."""
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

    first = next(lines := good(), None)
    if first is None:
        raise WorkError(
            f"{out}: not one of {total} utterances succeeded; the last reason: "
            f"{failed[-1]['error']}"
        )
    task.write(target, itertools.chain([first], lines))
    if joined != total:
        what = (
            f"{total - joined} of {total} utterances left neither a result nor a reason in "
            f"{journal.folder}"
        )
        raise WorkError(f"{out}: {what}; the same command tries them again")
    if not failed:
        return
    with open(target / FAILED, "w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in failed)
    ids = first_few([line["id"] for line in failed])
    logger.error(
        "%s: %d of %d utterances failed, %s says why: %s", out, len(failed), total, FAILED, ids
    )
