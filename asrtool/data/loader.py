"""Batches for training and decoding, read ahead by loader processes.

A task is a list of utterances. Loader processes hold no list of the whole set, so their memory does
not grow with it. An unreadable utterance stops decoding. In training it is logged, counted and left
out of its batch, while the step's `count` stays as planned: every rank divides by the same number
without communication.
"""

from __future__ import annotations

import functools
import gc
import itertools
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing import connection
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from asrtool import distributed
from asrtool.data.config import BatchConfig, DataConfig
from asrtool.data.examples import ONE_VIEW, Content, Example, Reader, Views
from asrtool.data.features import Cmvn
from asrtool.data.kaldi.utterances import Utterances
from asrtool.data.sampler import BatchPlan
from asrtool.data.tokenizers import UNK, Tokenizer
from asrtool.errors import UserError
from asrtool.log import first_few, logger, plural, warn_once
from asrtool.types import Batch, Utterance

WORKERS = 2  # loader processes where `auto` has not been decided by a measurement
PACED, PACE_SECONDS = 32, 2.0  # limits of that measurement: micro-batches, seconds
PREFETCH = 4  # micro-batches read ahead by each loader process
MANY = 20  # training stops after so many unreadable utterances, if they are more than half


class Dataset:
    """The utterances of one set, and how to read them.

    cmvn: normalises features; labels: name -> values (`tokenizers.load_labels`); training: whether
    to augment; sets: the utterances of the noise and room sets by name; views: of each utterance,
    side by side in every batch. Warns of characters that
    are not in the vocabulary.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        tokenizer: Tokenizer,
        config: DataConfig,
        cmvn: Cmvn | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
        *,
        training: bool = False,
        seed: int = 0,
        sets: Mapping[str, Sequence[Utterance]] | None = None,
        views: Views = ONE_VIEW,
    ) -> None:
        if not utterances:
            raise UserError("there are no utterances to load")
        self.utterances = Utterances.of(utterances)
        # Written so that NaN, an unmeasured duration, is rejected too.
        for index in np.flatnonzero(~(self.utterances.durations > 0)):
            utterance = self.utterances[index]
            raise UserError(
                f"{utterance.id}: the duration is {utterance.duration} seconds (utt2dur); "
                "expected more than 0"
            )
        self.config = config
        self.training = training
        self.seed = seed
        self.reader = Reader(
            tokenizer,
            config,
            cmvn,
            labels or {},
            training=training,
            seed=seed,
            sets=sets or {},
            views=views,
        )
        warn_of_unknown(self.utterances, tokenizer)
        for name, classes in self.reader.labels.items():
            without = int((self.utterances.label(name, list(classes)) < 0).sum())
            if without:
                logger.info(
                    "%d of %d utterances have no known value of the label '%s'",
                    without,
                    len(self),
                    name,
                )

    def __len__(self) -> int:
        return len(self.utterances)

    @property
    def lengths(self) -> np.ndarray:
        """Seconds of each utterance for planning batches: the maximum over random speeds."""
        slowest = (
            min(self.config.augment.speeds) if self.training and self.reader.from_audio else 1.0
        )
        return self.utterances.durations / slowest

    @property
    def limits(self) -> BatchConfig:
        """Of batches of utterances: with several views of each, so many times fewer utterances."""
        return self.config.batch.divided(self.reader.views.count)

    def example(self, index: int, epoch: int = 0) -> Example:
        return self.reader.example(self.utterances[index], epoch)


@dataclass(frozen=True, kw_only=True)
class StepBatches:
    """One optimizer step: this rank's micro-batches, and their context."""

    # utterances of the global batch (views of utterances), over all ranks, skipped ones included
    count: int
    batches: list[Batch]  # this rank's; empty where the step has fewer utterances than ranks
    epoch: int
    index: int  # index of the step in its epoch, from 0
    last: bool  # whether it is the last step of its epoch
    skipped: tuple[str, ...] = ()  # ids of this rank that could not be read


class StepLoader:
    """The steps of a training run from any (epoch, index), for any number of loader processes.

    plan: the utterances of each step; by default planned from the whole set. rank, world: the share
    of each global batch to read; by default that of this process.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        plan: BatchPlan | None = None,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        self.dataset = dataset
        self.plan = plan or BatchPlan(dataset.lengths, dataset.limits, dataset.seed)
        self.rank = distributed.rank() if rank is None else rank
        self.world = distributed.world_size() if world is None else world
        # loader processes; None: nobody has chosen yet
        self.workers = None if dataset.config.workers == "auto" else dataset.config.workers
        self.skipped: dict[str, str] = {}  # id -> reason, over all epochs
        self._num_read = self._num_skipped = 0
        self._epoch = functools.lru_cache(maxsize=2)(self.plan.epoch)
        if self.plan.too_long:
            ids = [dataset.utterances[i].id for i in self.plan.too_long]
            warn_once(
                "%d utterances are longer than the batch limit; each becomes a batch of its "
                "own: %s",
                len(ids),
                first_few(ids),
            )

    def num_steps(self, epoch: int) -> int:
        """Steps of an epoch; the number varies between epochs only with shards or several sets."""
        return self.plan.num_batches(epoch)

    def describe(self) -> str:
        """A one-line summary of the global batch, which is the same on any number of ranks."""
        plan = self._epoch(0)
        members = self.plan.members(0)
        utterances, seconds = len(members) / len(plan), self.plan.lengths[members].sum() / len(plan)
        cuts = [len(self.plan.slices(batch, self.rank, self.world)) for batch in plan[:50]]
        parts = (
            f"{min(cuts)} to {max(cuts)} micro-batches"
            if min(cuts) < max(cuts)
            else plural(max(cuts), "micro-batch", "micro-batches")
        )
        views = self.dataset.reader.views.count
        copies = f" of {views} views each" if views > 1 else ""
        return (
            f"global batch: {utterances:.1f} utterances{copies}, {seconds:.1f} seconds on average, "
            f"at most {self.plan.config.size:g} with padding; {plural(len(plan), 'step')} per "
            f"epoch; {plural(self.world, 'rank')} with {parts} each"
        )

    def steps(self, epoch: int = 0, index: int = 0) -> Iterator[StepBatches]:
        """Step `index` of `epoch` and all that follow, over all epochs without end."""
        batches, skipped = [], {}
        tasks = self._tasks(epoch, index)
        for task, batch, problems in read_ahead(self.dataset, tasks, self.workers):
            batches += [] if batch is None else [batch]
            skipped |= problems
            self._num_read += len(problems) + (0 if batch is None else len(batch))
            # a step is complete with its last micro-batch; a resumed run starts at whole steps only
            if task.remaining:
                continue
            self._note(task, skipped)
            yield StepBatches(
                count=task.count * self.dataset.reader.views.count,
                batches=batches,
                epoch=task.epoch,
                index=task.index,
                last=task.last,
                skipped=tuple(skipped),
            )
            batches, skipped = [], {}

    def pace(self, epoch: int = 0, index: int = 0) -> float:
        """Inputs (frames, samples or tokens) that one loader process prepares in a second, measured
        on the first micro-batches of the steps from `index` of `epoch` on; 0.0: none can be read.
        """
        threads, inputs = torch.get_num_threads(), 0
        torch.set_num_threads(1)  # as in a loader process
        began = time.monotonic()
        try:
            # as single files, also of shards, whose tasks would first read a window of archives
            for task in islice(StepLoader._tasks(self, epoch, index), PACED):
                batch, _ = self.dataset.reader.batch(task.utterances, task.epoch)
                inputs += 0 if batch is None else int(batch.inputs.lengths.sum())
                if time.monotonic() - began > PACE_SECONDS:
                    break
        finally:
            torch.set_num_threads(threads)
        return inputs / max(time.monotonic() - began, 1e-9)

    def longest(self) -> Batch | None:
        """The first micro-batch of the step with the longest utterance; None if unreadable."""
        longest = int(self.plan.lengths.argmax())
        batch = next(batch for batch in self._epoch(0) if longest in batch)
        # a rank without a share of this step tries rank 0's, so that every rank checks its memory
        micros = self.plan.slices(batch, self.rank, self.world) or self.plan.slices(
            batch, 0, self.world
        )
        return self.dataset.reader.batch([self.dataset.utterances[i] for i in micros[0]])[0]

    def densest(self, size: int = 32) -> Iterator[Batch]:
        """Batches of up to `size` utterances with the most text per second, equal on all ranks."""
        # characters per second approximate tokens per frame well enough to find the utterances that
        # CTC cannot align
        utterances, lengths = self.dataset.utterances, self.plan.lengths
        limit = self.plan.config.per_device or self.plan.config.size
        order = np.argsort(-utterances.characters / lengths, kind="stable")
        group: list[int] = []
        for i in itertools.chain(order, [None]):
            full = (
                i is None
                or len(group) == size
                or (len(group) + 1) * max(lengths[[*group, i]]) > limit
            )
            if group and full:
                batch, _ = self.dataset.reader.batch([utterances[j] for j in group])
                if batch is not None:
                    yield batch
                group = []
            group += [] if i is None else [i]

    def _tasks(self, epoch: int, index: int) -> Iterator[Task]:
        utterances = self.dataset.utterances
        while True:
            plan = self._epoch(epoch)
            for i in range(index, len(plan)):
                micros = self.plan.slices(plan[i], self.rank, self.world) or [[]]
                for left, micro in zip(range(len(micros) - 1, -1, -1), micros, strict=True):
                    chosen = [utterances[u] for u in micro]
                    yield Task(
                        chosen, epoch, i, len(plan[i]), i + 1 == len(plan), left, indices=micro
                    )
            epoch, index = epoch + 1, 0

    def _note(self, task: Task, problems: dict[str, str]) -> None:
        if not problems:
            return
        self.skipped |= problems
        self._num_skipped += len(problems)
        reasons = list(problems.values())
        where = f"epoch {task.epoch}, step {task.index}"
        logger.warning(
            "%s: skipped %d of %d utterances: %s",
            where,
            len(problems),
            task.count,
            first_few(reasons),
        )
        if self._num_skipped >= MANY and 2 * self._num_skipped > self._num_read:
            share = f"{self._num_skipped} of {self._num_read}"
            raise UserError(f"{share} utterances could not be read; the last reason: {reasons[-1]}")


class EvalLoader:
    """All utterances once, in batches of similar length, longest first.

    Rank r gets every `world`-th batch. seconds: padded audio of a batch, by default the limit per
    device in training. An unreadable utterance raises `UserError`; iterate `each` to go on instead.
    done: ids of finished utterances; batches with only such ids are left out, others are unchanged.
    """

    def __init__(
        self,
        dataset: Dataset,
        seconds: float | None = None,
        *,
        rank: int | None = None,
        world: int | None = None,
        done: Container[str] = (),
    ) -> None:
        self.dataset = dataset
        config = dataset.config.batch
        seconds = seconds or config.per_device or config.size
        limits = BatchConfig(seconds=seconds, max_utterances=config.max_utterances)
        plan = BatchPlan(dataset.lengths, limits, shuffle=False)
        rank = distributed.rank() if rank is None else rank
        world = distributed.world_size() if world is None else world
        utterances, self._batches = dataset.utterances, plan.epoch(0)[rank::world]
        if done:
            self._batches = [
                batch for batch in self._batches if not all(utterances[i].id in done for i in batch)
            ]

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch, problems in self.each():
            for problem in problems.values():
                raise UserError(f"an utterance cannot be read: {problem}")
            yield batch

    def each(self) -> Iterator[tuple[Batch | None, dict[str, str]]]:
        """The batch of the readable utterances (None: none), and id -> reason of the others."""
        utterances = self.dataset.utterances
        tasks = (Task([utterances[i] for i in batch]) for batch in self._batches)
        for _, batch, problems in read_ahead(self.dataset, tasks):
            yield batch, problems


def readable(
    utterances: Sequence[Utterance], seconds: float | None, kind: str
) -> Sequence[Utterance]:
    """The utterances of at most `seconds`, the limit of the encoder (None: no limit); logs the
    others.

    kind: training or validation, for the message. Raises `UserError` if none is left.
    """
    rows = Utterances.of(utterances)
    long = rows.durations > (math.inf if seconds is None else seconds)
    if not long.any():
        return rows
    text = "%d of %d %s utterances are longer than the %g seconds that the encoder reads and left"
    ids = first_few(rows.take(long).ids)
    warn_once(text + " out: %s", long.sum(), len(rows), kind, seconds, ids)
    if long.all():
        raise UserError(
            f"all {len(rows)} {kind} utterances are longer than the {seconds:g} seconds that the "
            "encoder reads; cut them into shorter ones"
        )
    return rows.take(~long)


def select(utterances: Iterable[Utterance], config: DataConfig) -> tuple[Utterances, Utterances]:
    """(kept, left out) by `min_seconds` and `max_seconds`, for training sets.

    Logs how many are left out, and how many have no text. Raises `UserError` if none is kept.
    """
    rows = Utterances.of(utterances)
    short = rows.durations < config.min_seconds
    long = (rows.durations > config.max_seconds) & ~short
    limits = (
        f"shorter than {config.min_seconds:g} seconds",
        f"longer than {config.max_seconds:g} seconds",
    )
    for group, limit in zip((short, long), limits, strict=True):
        if group.any():
            warn_once(
                "%d of %d training utterances are %s and left out: %s",
                group.sum(),
                len(rows),
                limit,
                first_few(rows.take(group).ids),
            )
    kept = rows if not (short | long).any() else rows.take(~(short | long))
    if not kept:
        raise UserError(
            f"none of {len(rows)} utterances is between {config.min_seconds:g} and "
            f"{config.max_seconds:g} seconds long (data.min_seconds, data.max_seconds)"
        )
    silent = kept.take(~kept.has_text)
    if silent:
        text = (
            "%d of %d training utterances have an empty text, which teaches the model to output"
            " nothing: %s"
        )
        warn_once(text, len(silent), len(rows), first_few(silent.ids))
    return kept, rows.take(np.concatenate([np.flatnonzero(short), np.flatnonzero(long)]))


def warn_of_unknown(utterances: Utterances, tokenizer: Tokenizer) -> None:
    """Warn of characters that are not in the vocabulary; each text is checked once."""
    # each different character is looked up once, and texts are searched only if any is unknown
    lacking = {character for character in utterances.alphabet() if tokenizer.unknown(character)}
    counts, texts = utterances.occurrences(lacking) if lacking else ({}, 0)
    if not counts:
        return
    listed = first_few([f"'{character}' ({count}x)" for character, count in counts.most_common()])
    text = f"{len(counts)} characters, in {texts} of {len(utterances)} utterances,"
    warn_once("%s are not in the vocabulary and become %s: %s", text, UNK, listed)


# -- loader processes ------------------------------------------------------


class Task(NamedTuple):
    """One micro-batch to read, and its context."""

    utterances: Sequence[Utterance]
    epoch: int = 0
    index: int = 0
    count: int = 0
    last: bool = False
    remaining: int = 0  # number of micro-batches of the same step after this one
    indices: Sequence[int] = ()  # their indices in the set
    contents: Sequence[Content] | None = None  # their files, where they have been read already


class _Source(torch.utils.data.Dataset):
    """The dataset for torch's DataLoader: the index is a task, the item a batch."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, task: Task) -> tuple[Task, Batch | None, dict[str, str]]:
        batch, problems = self.reader.batch(task.utterances, task.epoch, task.contents)
        return task._replace(utterances=(), indices=(), contents=None), batch, problems


def read_ahead(
    dataset: Dataset, tasks: Iterable[Task], workers: int | None = None
) -> Iterator[tuple[Task, Batch | None, dict[str, str]]]:
    """The tasks' batches in order, read by `workers` processes, or in this process for 0; None: as
    many as the config says.
    """
    if workers is None:
        workers = WORKERS if dataset.config.workers == "auto" else dataset.config.workers
    loader = DataLoader(
        _Source(dataset.reader),
        batch_size=None,  # each task is a batch already
        sampler=tasks,
        collate_fn=_same,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_set_up_worker,
        pin_memory=torch.cuda.is_available(),
        # Forking takes milliseconds; spawning would import torch in every process. Loader
        # processes do not use CUDA.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        # DataLoader draws a seed: from torch's own generator, that would shift the numbers that
        # follow, and a resumed run would differ
        generator=torch.Generator(),
    )
    batches, processes = _start(loader)
    while True:
        try:
            item = next(batches)
        except StopIteration:
            return
        except (RuntimeError, OSError, EOFError):
            dead = (
                connection.wait([process.sentinel for process in processes], timeout=1)
                if processes
                else []
            )
            if not dead:
                raise
            process = next(process for process in processes if process.sentinel in dead)
            process.join()  # the exit code may arrive a moment after the sentinel
            code = process.exitcode
            advice = f"is there enough memory, and shared memory, for data.workers: {workers}?"
            raise UserError(f"a loader process died with exit code {code}; {advice}") from None
        yield item


def _start(loader: DataLoader) -> tuple[Iterator, set[multiprocessing.process.BaseProcess]]:
    """Start the processes without torch's SIGCHLD handler, which raises in arbitrary places.

    `next` raises in order instead.
    """
    handler, others = signal.getsignal(signal.SIGCHLD), set(multiprocessing.active_children())
    batches = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)
    return batches, set(multiprocessing.active_children()) - others


def _same(item: object) -> object:
    return item


def _set_up_worker(number: int) -> None:
    """Ignore signals to the process group (Ctrl-C, SIGTERM): the trainer ends its loader."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _say_unless_the_trainer_ended
    gc.freeze()  # a collection would write to, and so copy, every page shared with the trainer


def _say_unless_the_trainer_ended(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Silence the error of a thread whose trainer was killed while it received a batch.

    `multiprocessing.resource_sharer` would report the broken connection through `sys.excepthook`.
    """
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
