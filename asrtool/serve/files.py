"""Files that are recognised as wholes: a bounded queue, and a thread of lower priority than that of
the streams.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from asrtool.data import audio
from asrtool.data.audio import AudioError
from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.recognition import Recognition
from asrtool.recognizer import Prepared, Recognizer
from asrtool.serve import Limits, Refused
from asrtool.serve.metrics import Metrics

TOGETHER = 600.0  # seconds of audio that are recognised side by side
BLOCK = 10.0  # seconds that are decoded at a time, until a file turns out to be too long
NICE = 10  # added to the niceness of the thread: live audio comes first
DRAINING = "the server is shutting down; send the file again in a moment"
FAILED = "the recognition of this file failed; the log of the server says why"


@dataclass(eq=False)
class Job:
    """A file, the name that its client gave it, and who waits for its text."""

    path: Path
    name: str
    answer: asyncio.Future[Recognition] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Files:
    """The files that wait, and the thread that recognises them. `run` runs until it is
    cancelled.
    """

    def __init__(self, recognizer: Recognizer, limits: Limits, metrics: Metrics) -> None:
        self._recognizer = recognizer
        self._limits, self._metrics = limits, metrics
        self._jobs: list[Job] = []
        self._places = 0  # taken by requests: their uploads, files that wait or are recognised
        self._wake = asyncio.Event()
        self._draining = False

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, from its first byte on. Raises `Refused` where all are taken."""
        if self._draining:
            raise Refused(503, DRAINING)
        if self._places >= self._limits.files:
            raise Refused(503, f"{self._places} files are waiting already; try again later")
        self._places += 1
        self._metrics.waiting.set(self._places)
        try:
            yield
        finally:
            self._places -= 1
            self._metrics.waiting.set(self._places)

    async def recognize(self, path: Path, name: str) -> Recognition:
        """What is said in a file; `name`: of the file in messages. Raises `UserError` where it
        cannot be read.
        """
        job = Job(path, name)
        self._jobs.append(job)
        self._wake.set()
        try:
            return await job.answer
        finally:
            if job in self._jobs:  # the client is gone before its turn came
                self._jobs.remove(job)

    def drain(self) -> None:
        """Take no new files; those that are here are recognised."""
        self._draining = True

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "files", initializer=_be_nice) as thread:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._jobs:
                    jobs, self._jobs = self._jobs, []
                    done = await loop.run_in_executor(thread, self._work, jobs)
                    for job, result in zip(jobs, done, strict=True):
                        _answer(job, result)

    # -- in the thread -----------------------------------------------------------

    def _work(self, jobs: Sequence[Job]) -> list[Recognition | Exception]:
        """The text of each file, or why there is none."""
        found: dict[Job, Recognition | Exception] = {}
        group: dict[Job, Prepared] = {}
        seconds = 0.0
        for job in jobs:
            if job.answer.cancelled():
                found[job] = asyncio.CancelledError()
                continue
            try:
                group[job] = self._prepare(job)
                seconds += len(group[job].inputs) * self._recognizer.step
            except Exception as error:
                found[job] = error
            if seconds >= TOGETHER:
                found |= self._recognize(group)
                group, seconds = {}, 0.0
        found |= self._recognize(group)
        return [found[job] for job in jobs]

    def _prepare(self, job: Job) -> Prepared:
        """Decode a file, but no more of it than the limit."""
        most = self._limits.file_seconds
        parts, seconds, rate = [], 0.0, 0
        try:
            for part, rate in audio.blocks(str(job.path), BLOCK):
                parts.append(part)
                seconds += len(part) / rate
                if seconds > most:
                    raise Refused(
                        413, f"{job.name}: longer than {most:g} seconds, the most that is served"
                    )
        except AudioError as error:  # which names the temporary file
            raise AudioError(str(error).replace(str(job.path), job.name)) from None
        return self._recognizer.prepare(np.concatenate(parts), rate)

    def _recognize(self, group: dict[Job, Prepared]) -> dict[Job, Recognition | Exception]:
        """Side by side; one by one where that fails."""
        if not group:
            return {}
        began = time.monotonic()
        try:
            results = self._recognizer.transcribe(list(group.values()))
        except Exception as error:
            if len(group) == 1:
                return {next(iter(group)): error}
            apart: dict[Job, Recognition | Exception] = {}
            for job, prepared in group.items():
                apart |= self._recognize({job: prepared})
            return apart
        self._metrics.work.labels("file").inc(time.monotonic() - began)
        self._metrics.audio.labels("file").inc(sum(result.seconds for result in results))
        return dict(zip(group, results, strict=True))


def _be_nice() -> None:
    """Lower the priority of this thread alone, which Linux can."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def _answer(job: Job, result: Recognition | Exception) -> None:
    if job.answer.done():
        return
    if isinstance(result, UserError):
        job.answer.set_exception(result)
    elif isinstance(result, BaseException):
        logger.error("a file could not be recognised", exc_info=result)
        job.answer.set_exception(Refused(500, FAILED))
    else:
        job.answer.set_result(result)
