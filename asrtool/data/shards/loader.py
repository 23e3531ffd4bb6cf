"""Train from shards: archives are read from end to end, and batches are made from a buffer.

Each epoch shuffles the archives, and cuts the sequence of their members into windows of
`buffer_mb`. A window is divided into batches of similar length, in random order. While one window
is used, a thread reads the next, so two are in memory; each rank reads and holds only its own
utterances. As for single files, the plan depends only on (index, lengths, limits, seed, epoch): a
resumed run, and any number of ranks or loader processes, sees the same steps.
"""

from __future__ import annotations

import functools
import math
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, TypeVar

import numpy as np

from asrtool.data.config import BatchConfig
from asrtool.data.examples import Content
from asrtool.data.loader import Dataset, StepLoader, Task
from asrtool.data.sampler import Batches, BatchPlan
from asrtool.data.shards.index import ShardIndex
from asrtool.log import warn_once

FEW = 4  # batches per window; with fewer, lengths differ more and batches are less random
Item = TypeVar("Item")


class ShardPlan(BatchPlan):
    """A batch plan in which consecutive batches are close to each other in the archives.

    `windows(epoch)`: the global batches of each window; all windows have about the same number of
    bytes.
    """

    def __init__(
        self,
        index: ShardIndex,
        lengths: Sequence[float],
        config: BatchConfig,
        seed: int,
        buffer_mb: float,
    ) -> None:
        super().__init__(lengths, config, seed)
        self.index = index
        in_archive = np.lexsort((index.offset, index.archive))
        ends = np.searchsorted(
            index.archive[in_archive], np.arange(len(index.archives)), side="right"
        )
        # utterances of each archive, by offset: reading them in this order never seeks back
        self._members = np.split(in_archive, ends[:-1])
        self.windows = functools.lru_cache(maxsize=2)(self._cut_windows)
        self.num_windows = max(1, math.ceil(int(index.size.sum()) / (buffer_mb * 1e6)))

    def reading_order(self, number: int) -> np.ndarray:
        """(N,) the utterances in the reading order of an epoch."""
        rng = np.random.Generator(np.random.PCG64([self.seed, number]))
        return np.concatenate([self._members[i] for i in rng.permutation(len(self._members))])

    def epoch(self, number: int) -> Batches:
        return Batches.joined(self.windows(number))

    def num_batches(self, number: int) -> int:
        return sum(
            len(self._starts(np.sort(self.padded[members]))) for members in self._windows_of(number)
        )

    def _windows_of(self, number: int) -> list[np.ndarray]:
        """The utterances of each window, in the reading order of an epoch."""
        order = self.reading_order(number)
        sizes = self.index.size[order]
        # windows are equal parts of the bytes: a member belongs to the window in which it begins
        begins = np.cumsum(sizes) - sizes
        window = begins * self.num_windows // max(int(sizes.sum()), 1)
        return np.split(order, np.searchsorted(window, np.arange(1, self.num_windows)))

    def _cut_windows(self, number: int) -> list[Batches]:
        rng = np.random.Generator(np.random.PCG64([self.seed, number, 1]))
        made = []
        for members in self._windows_of(number):
            batches = self._cut(self._mixed(members, rng))
            made.append(batches.take(rng.permutation(len(batches))))
        return made


class ShardLoader(StepLoader):
    """The steps of a training run over shards: a `StepLoader` that reads ahead by windows."""

    def __init__(
        self,
        dataset: Dataset,
        index: ShardIndex,
        *,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        config = dataset.config
        plan = ShardPlan(
            index, dataset.lengths, dataset.limits, dataset.seed, config.shards.buffer_mb
        )
        super().__init__(dataset, plan=plan, rank=rank, world=world)
        self.index = index
        self._reading_times = functools.lru_cache(maxsize=2)(self._times_in_epoch)
        if plan.num_windows > 1 and self.num_steps(0) < FEW * plan.num_windows:
            per_window = self.num_steps(0) / plan.num_windows
            warn_once(
                "data.shards.buffer_mb: %g holds only %.1f batches of %g seconds; a larger buffer "
                "mixes them better",
                config.shards.buffer_mb,
                per_window,
                config.batch.size,
            )

    def _tasks(self, epoch: int, index: int) -> Iterator[Task]:
        # lazily: the tasks of a window are planned when the thread is about to read it
        windows = (
            list(tasks) for _, tasks in groupby(super()._tasks(epoch, index), key=self._window)
        )
        archives = Archives(self.index)
        filled = ((tasks, self._fill(tasks, archives)) for tasks in windows)
        for tasks, contents in one_ahead(filled):
            for task in tasks:
                # popped, so that the window shrinks while it is used
                yield task._replace(contents=[contents.pop(i) for i in task.indices])

    def _window(self, task: Task) -> tuple[int, int]:
        ends = np.cumsum([len(batches) for batches in self.plan.windows(task.epoch)])
        return task.epoch, int(np.searchsorted(ends, task.index, side="right"))

    def _times_in_epoch(self, epoch: int) -> np.ndarray:
        """(N,) the position of each utterance in the reading order of an epoch."""
        order = self.plan.reading_order(epoch)
        times = np.empty(len(order), dtype=np.int64)
        times[order] = np.arange(len(order))
        return times

    def _fill(self, tasks: Sequence[Task], archives: Archives) -> dict[int, Content]:
        """The contents of all members of a window, read in the order of the archives."""
        when = self._reading_times(tasks[0].epoch)
        members = sorted((i for task in tasks for i in task.indices), key=when.__getitem__)
        return {i: archives.read(i) for i in members}


def step_loader(dataset: Dataset, folder: Path, plan: BatchPlan | None = None) -> StepLoader:
    """The training steps of a set in `folder`, from shards where its config has them.

    plan: of other steps than those of the whole set, which shards do not have.
    """
    if dataset.config.shards is None:
        return StepLoader(dataset, plan=plan)
    return ShardLoader(dataset, ShardIndex(folder, dataset.utterances.ids))


class Archives:
    """Reads members in turn; the archive of the last one stays open."""

    def __init__(self, index: ShardIndex) -> None:
        self.index = index
        self._number = -1
        self._file: BinaryIO | None = None

    def read(self, i: int) -> Content:
        """The content of member `i`, or the reason why it cannot be used."""
        index = self.index
        number, offset, size = (
            int(index.archive[i]),
            int(index.offset[i]),
            int(index.size[i]),
        )
        position = f"{index.archives[number]}, bytes {offset} to {offset + size}"
        try:
            if number != self._number:
                self._open(number)
            self._file.seek(offset)
            data = self._file.read(size)
        except OSError as error:
            self._number = -1
            return f"{position}: {(error.strerror or 'cannot be read').lower()}"
        if len(data) < size:
            return f"{position}: the archive ends too early; copy it again"
        if zlib.crc32(data) != index.checksum[i]:
            return f"{position}: damaged, its checksum does not match; copy the archive again"
        return data

    def _open(self, number: int) -> None:
        if self._file is not None:
            self._file.close()
        self._file = open(self.index.archives[number], "rb", buffering=1 << 20)  # noqa: SIM115 - the next one closes it
        self._number = number
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The items in order; while one is used, a thread prepares the next one, and no more."""
    ready: SimpleQueue[tuple[Item | None, BaseException | None]] = SimpleQueue()
    wanted, stopped = threading.Semaphore(1), threading.Event()

    def make() -> None:
        while wanted.acquire() and not stopped.is_set():
            try:
                ready.put((next(items), None))
            except BaseException as error:  # raised again where the item is requested
                ready.put((None, error))
                return

    threading.Thread(target=make, name="shards", daemon=True).start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            wanted.release()
            yield item
            # no reference may remain while the next window is awaited
            del item
    finally:
        stopped.set()
        wanted.release()
