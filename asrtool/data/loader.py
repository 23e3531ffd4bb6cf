"""Batches for training and for decoding, read ahead by loader processes.

A task is a list of utterances; loader processes hold no list of the whole set, so their memory does
not grow with it. An utterance that cannot be read stops decoding. In training it is named, counted
and left out of its batch, while the step's `count` stays what was planned: every rank divides by
the same number without asking the others.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from types import TracebackType
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader

from asrtool import distributed
from asrtool.data.config import BatchConfig, DataConfig
from asrtool.data.examples import Content, DataError, Example, Reader
from asrtool.data.features import Cmvn
from asrtool.data.sampler import BatchPlan
from asrtool.data.tokenizers import UNK, Tokenizer
from asrtool.log import first_few, logger, warn_once
from asrtool.types import Batch, Utterance

PREFETCH = 4  # micro-batches that each loader process reads ahead
MANY = 20  # so many unreadable utterances, more than half of those read, stop training


class Dataset:
    """The utterances of one set and how to read them.

    cmvn: normalises features; labels: name -> values (`tokenizers.load_labels`); training: whether
    to augment; sets: the utterances of the noise and room sets by name. Warns of characters that
    the vocabulary lacks.
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
    ) -> None:
        if not utterances:
            raise DataError("there is no utterance to load")
        for utterance in utterances:
            if not utterance.duration > 0:
                raise DataError(
                    f"{utterance.id}: a duration of {utterance.duration} seconds (utt2dur); "
                    "expected above 0"
                )
        self.utterances = list(utterances)
        self.config = config
        self.training = training
        self.seed = seed
        self.reader = Reader(
            tokenizer, config, cmvn, labels or {}, training=training, seed=seed, sets=sets or {}
        )
        warn_of_unknown(self.utterances, tokenizer)
        for name, classes in self.reader.labels.items():
            without = sum(
                utterance.labels.get(name) not in classes for utterance in self.utterances
            )
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
        """Seconds of each utterance for planning batches: the longest that a random speed can make
        it.
        """
        slowest = (
            min(self.config.augment.speeds) if self.training and self.reader.from_audio else 1.0
        )
        return np.array([utterance.duration for utterance in self.utterances]) / slowest

    def example(self, index: int, epoch: int = 0) -> Example:
        return self.reader.example(self.utterances[index], epoch)


@dataclass(frozen=True, kw_only=True)
class StepBatches:
    """One optimizer step: this rank's micro-batches, and what they are part of."""

    count: int  # utterances of the global batch, over all ranks, skipped ones included
    batches: list[Batch]  # of this rank; may be none where the step has fewer utterances than ranks
    epoch: int
    index: int  # of the step in its epoch, from 0
    last: bool  # of its epoch
    skipped: tuple[str, ...] = ()  # ids of this rank that could not be read


class StepLoader:
    """The steps of a training run, from any (epoch, index) on; the same whatever the number of
    loader processes.

    plan: which utterances make up each step; by default drawn from the whole set. rank, world:
    which share of each global batch to read; by default this process's.
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
        self.plan = plan or BatchPlan(dataset.lengths, dataset.config.batch, dataset.seed)
        self.rank = distributed.rank() if rank is None else rank
        self.world = distributed.world_size() if world is None else world
        self.skipped: dict[str, str] = {}  # id -> why, of all epochs
        self._num_read = self._num_skipped = 0
        self._epoch = functools.lru_cache(maxsize=2)(self.plan.epoch)
        if self.plan.too_long:
            ids = [dataset.utterances[i].id for i in self.plan.too_long]
            warn_once(
                "%d utterances are longer than a batch may be; each gets its own: %s",
                len(ids),
                first_few(ids),
            )

    def num_steps(self, epoch: int) -> int:
        """Steps of an epoch; the same in all, but for shards, whose windows hold other utterances
        in every epoch.
        """
        return self.plan.num_batches(epoch)

    def describe(self) -> str:
        """One line on the global batch, which is the same on any number of ranks."""
        plan = self._epoch(0)
        utterances, seconds = len(self.dataset) / len(plan), self.plan.lengths.sum() / len(plan)
        cuts = [len(self.plan.slices(batch, self.rank, self.world)) for batch in plan[:50]]
        parts = (
            f"{min(cuts)} to {max(cuts)} micro-batches"
            if min(cuts) < max(cuts)
            else f"{max(cuts)} micro-batches"
        )
        return (
            f"global batch: {utterances:.1f} utterances, {seconds:.1f} seconds on average, at most "
            f"{self.plan.config.size:g} with padding; {len(plan)} steps an epoch; {self.world} rank"
            f"{'s' * (self.world > 1)} with {parts} each"
        )

    def steps(self, epoch: int = 0, index: int = 0) -> Iterator[StepBatches]:
        """Step `index` of `epoch`, and so on without end, over all epochs."""
        batches, skipped = [], {}
        for task, batch, problems in read_ahead(self.dataset, self._tasks(epoch, index)):
            batches += [] if batch is None else [batch]
            skipped |= problems
            self._num_read += len(problems) + (0 if batch is None else len(batch))
            if task.remaining:
                continue
            self._note(task, skipped)
            yield StepBatches(
                count=task.count,
                batches=batches,
                epoch=task.epoch,
                index=task.index,
                last=task.last,
                skipped=tuple(skipped),
            )
            batches, skipped = [], {}

    def longest(self) -> Batch | None:
        """The first micro-batch, of this rank where it has one, of the step with the longest
        utterance; None where none of it can be read."""
        longest = int(self.plan.lengths.argmax())
        batch = next(batch for batch in self._epoch(0) if longest in batch)
        micros = self.plan.slices(batch, self.rank, self.world) or self.plan.slices(
            batch, 0, self.world
        )
        return self.dataset.reader.batch([self.dataset.utterances[i] for i in micros[0]])[0]

    def densest(self, size: int = 32) -> Iterator[Batch]:
        """Batches of up to `size` utterances, those with the most text per second first, the same
        on all ranks.
        """
        utterances, lengths = self.dataset.utterances, self.plan.lengths
        limit = self.plan.config.per_device or self.plan.config.size
        order = sorted(range(len(utterances)), key=lambda i: -len(utterances[i].text) / lengths[i])
        group: list[int] = []
        for i in [*order, None]:
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
            raise DataError(f"{share} utterances could not be read, the last one: {reasons[-1]}")


class EvalLoader:
    """All utterances once, in batches of similar length, longest first; every `world`-th batch
    belongs to this rank.

    seconds: padded audio of a batch, by default what one device takes in training. An unreadable
    utterance raises `DataError`, unless `each` is iterated instead. done: ids; a batch of nothing
    else is left out, the others are what they would be without.
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
        ids = [utterance.id for utterance in dataset.utterances]
        self._batches = [
            batch for batch in plan.epoch(0)[rank::world] if not all(ids[i] in done for i in batch)
        ]

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch, problems in self.each():
            for problem in problems.values():
                raise DataError(f"an utterance cannot be read: {problem}")
            yield batch

    def each(self) -> Iterator[tuple[Batch | None, dict[str, str]]]:
        """The batch of those that can be read (None: not one), and id -> reason of the others."""
        utterances = self.dataset.utterances
        tasks = (Task([utterances[i] for i in batch]) for batch in self._batches)
        for _, batch, problems in read_ahead(self.dataset, tasks):
            yield batch, problems


def select(
    utterances: Iterable[Utterance], config: DataConfig
) -> tuple[list[Utterance], list[Utterance]]:
    """(kept, left out) by `min_seconds` and `max_seconds`, for training sets.

    Says how many are left out and names them, and those without a text; raises `DataError` where
    none is kept.
    """
    kept, short, long = [], [], []
    for utterance in utterances:
        too_short, too_long = (
            utterance.duration < config.min_seconds,
            utterance.duration > config.max_seconds,
        )
        (short if too_short else long if too_long else kept).append(utterance)
    total = len(kept) + len(short) + len(long)
    limits = (
        f"shorter than {config.min_seconds:g} seconds",
        f"longer than {config.max_seconds:g} seconds",
    )
    for group, limit in zip((short, long), limits, strict=True):
        if group:
            ids = first_few([utterance.id for utterance in group])
            warn_once(
                "%d of %d training utterances are %s and left out: %s",
                len(group),
                total,
                limit,
                ids,
            )
    if not kept:
        raise DataError(
            f"none of {total} utterances lasts from {config.min_seconds:g} to "
            f"{config.max_seconds:g} seconds"
            " (data.min_seconds, data.max_seconds)"
        )
    silent = [utterance.id for utterance in kept if not utterance.text]
    if silent:
        text = (
            "%d of %d training utterances have an empty text, from which the model learns to "
            "write nothing: %s"
        )
        warn_once(text, len(silent), total, first_few(silent))
    return kept, short + long


def warn_of_unknown(utterances: Sequence[Utterance], tokenizer: Tokenizer) -> None:
    """Count and name the characters that the vocabulary lacks; text without any is not looked at
    twice.
    """
    seen = sorted(set().union(*(utterance.text for utterance in utterances)))
    lacking = {character for character in seen if tokenizer.unknown(character)}
    if not lacking:
        return
    counts: Counter[str] = Counter()
    texts = 0
    for utterance in utterances:
        unknown = [character for character in utterance.text if character in lacking]
        counts.update(unknown)
        texts += bool(unknown)
    listed = first_few([f"'{character}' ({count}x)" for character, count in counts.most_common()])
    what = f"{len(counts)} characters, in {texts} of {len(utterances)} utterances,"
    warn_once("%s are not in the vocabulary and become %s: %s", what, UNK, listed)


# -- loader processes ------------------------------------------------------


class Task(NamedTuple):
    """One micro-batch to read, and what it is part of."""

    utterances: Sequence[Utterance]
    epoch: int = 0
    index: int = 0
    count: int = 0
    last: bool = False
    remaining: int = 0  # micro-batches of the same step that follow
    indices: Sequence[int] = ()  # of the utterances in the set
    contents: Sequence[Content] | None = None  # their files, where they were read already


class _Source(torch.utils.data.Dataset):
    """What torch's DataLoader asks for items: here a task is the index and a batch the item."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, task: Task) -> tuple[Task, Batch | None, dict[str, str]]:
        batch, problems = self.reader.batch(task.utterances, task.epoch, task.contents)
        return task._replace(utterances=(), indices=(), contents=None), batch, problems


def read_ahead(
    dataset: Dataset, tasks: Iterable[Task]
) -> Iterator[tuple[Task, Batch | None, dict[str, str]]]:
    """The tasks' batches in their order, read by `workers` processes, or here where there are
    none.
    """
    workers = dataset.config.workers
    loader = DataLoader(
        _Source(dataset.reader),
        batch_size=None,  # a task is a batch already
        sampler=tasks,
        collate_fn=_same,
        num_workers=workers,
        prefetch_factor=PREFETCH if workers else None,
        worker_init_fn=_set_up_worker,
        pin_memory=torch.cuda.is_available(),
        # Forking takes milliseconds, spawning imports torch in every process; no loader process
        # touches CUDA.
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        # leaves torch's own alone: a resumed run must draw the same numbers
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
            process.join()  # its exit code can come a moment after its sentinel
            code = process.exitcode
            advice = f"is there enough memory, and shared memory, for data.workers: {workers}?"
            raise DataError(f"a loader process died with exit code {code}; {advice}") from None
        yield item


def _start(loader: DataLoader) -> tuple[Iterator, set[multiprocessing.process.BaseProcess]]:
    """Start the processes, without torch's handler of SIGCHLD: that raises wherever the trainer is,
    `next` in order.
    """
    handler, others = signal.getsignal(signal.SIGCHLD), set(multiprocessing.active_children())
    batches = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)
    return batches, set(multiprocessing.active_children()) - others


def _same(item: object) -> object:
    return item


def _set_up_worker(number: int) -> None:
    """A signal to the process group (Ctrl-C, torchrun's SIGTERM) is for the trainer, which ends its
    loader itself.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.excepthook = _say_unless_the_trainer_ended
    gc.freeze()  # collecting would copy every page that is shared with the trainer


def _say_unless_the_trainer_ended(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A trainer that is killed while it takes a batch breaks the connection on which the process'
    thread hands it over.

    `multiprocessing.resource_sharer` reports that through `sys.excepthook`; there is nobody left
    for whom it is news.
    """
    if not issubclass(kind, (EOFError, ConnectionError)):
        sys.__excepthook__(kind, error, trace)
