"""Live audio of many connections in one running batch.

A `Feed` holds what a connection sent and nobody computed yet, and the results that it did not read
yet. As soon as its next chunk is complete, it stands in line; a thread computes the first ones of
the line side by side, one chunk of each. While it does, others come to stand in line: the batch is
as large as the load, and nobody waits for it to fill.

The line is ordered by when a chunk is due: when it came, but at the earliest one chunk after the
one before. Whoever sends faster than one can speak gets what those who speak leave over. If the
first one of the line is late, the load is too high: no more audios are taken, so that those that
are open do not wait longer and longer.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from heapq import heappop, heappush
from itertools import count

import numpy as np

from asrtool.log import logger
from asrtool.recognizer import Recognizer
from asrtool.serve import Limits, Refused
from asrtool.serve.metrics import Metrics
from asrtool.streaming import EndConfig, Result
from asrtool.streaming.together import Piece, Row, Streams

DRAINING = "the server is shutting down; connect again in a moment"
FAILED = "the recognition of this audio failed; the log of the server says why"


class Feed:
    """One audio on its way to the batches, its results on their way back."""

    def __init__(self, batches: Batches, row: Row, limits: Limits, rate: int) -> None:
        self.row = row
        self.busy = self.in_line = self.closed = False
        self.due = 0.0  # the time of the clock at which its last chunk was due
        self.failure: Refused | None = None
        self._batches, self._limits = batches, limits
        self._most = round(limits.queue_seconds * rate)
        self._parts: deque[tuple[np.ndarray, float]] = deque()  # samples, when they came
        self._samples = 0  # of the parts
        self._ended = False  # no more parts will come
        self._results: deque[Result] = deque()
        self._done = False  # no more results will come
        self._room, self._news = asyncio.Event(), asyncio.Event()

    # -- the side of the connection --------------------------------------------

    async def put(self, samples: np.ndarray) -> None:
        """The next samples (T,), float32 in [-1, 1] at the model's rate; waits for room. Raises
        `Refused` where the recognition failed.
        """
        while self._samples > self._most and not self._done:
            self._room.clear()
            await self._room.wait()
        if self.failure is not None:
            raise self.failure
        if len(samples) and not self._ended:
            self._parts.append((samples, time.monotonic()))
            self._samples += len(samples)
            self._batches.offer(self)

    def end(self) -> None:
        """No more samples will come."""
        self._ended = True
        self._batches.offer(self)

    async def get(self) -> Result | None:
        """The next result; None behind the last. Of partial results that were not read, only the
        last one is given. Raises `Refused` where the recognition failed.
        """
        while not self._results:
            if self.failure is not None:
                raise self.failure
            if self._done:
                return None
            self._news.clear()
            await self._news.wait()
        result = self._results.popleft()
        self._batches.offer(self)
        return result

    def close(self) -> None:
        """The connection is gone."""
        self._batches.remove(self)

    # -- the side of the batches -----------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether there is something to compute, and somebody to read it."""
        if self.busy or self.in_line or self.closed or self._done:
            return False
        if len(self._results) >= self._limits.unread:
            return False
        return self._ended or self._samples >= max(1, self.row.missing)

    @property
    def came(self) -> float:
        """The time of the clock at which the last sample came that the next chunk needs."""
        missing = self.row.missing
        for samples, at in self._parts:
            missing -= len(samples)
            if missing <= 0:
                return at
        return time.monotonic()  # the end of the audio, which has no time of its own

    def take(self) -> tuple[Piece, float]:
        """The samples that complete the next chunk, or all that are left at the end; and when the
        last of them came.
        """
        size = min(self._samples, self.row.missing)
        parts, at = [], time.monotonic()
        missing = size
        while missing:
            samples, at = self._parts.popleft()
            if len(samples) > missing:
                self._parts.appendleft((samples[missing:], at))
            parts.append(samples[:missing])
            missing -= len(parts[-1])
        self._samples -= size
        self._room.set()
        final = self._ended and not self._samples
        samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        return Piece(samples, final), at

    def tell(self, result: Result) -> None:
        """A partial result replaces one that was not read, and so does the final one."""
        if self._results and not self._results[-1].final:
            self._results.pop()
        self._results.append(result)
        self._news.set()

    def finish(self, failure: Refused | None = None) -> None:
        """Nothing more will be computed."""
        self.failure, self._done = failure, True
        self._parts.clear()
        self._news.set()
        self._room.set()


class Batches:
    """The feeds of all connections, and the thread that computes them. `run` runs until it is
    cancelled.
    """

    def __init__(
        self, recognizer: Recognizer, ends: EndConfig, limits: Limits, metrics: Metrics
    ) -> None:
        self.recognizer = recognizer
        self._streams = Streams(recognizer, ends)
        self._limits, self._metrics = limits, metrics
        self._feeds: set[Feed] = set()
        self._line: list[tuple[float, int, Feed]] = []  # a heap: when it is due, in which order
        self._order = count()
        self._chunk = recognizer.settings.chunk_ms / 1000
        self._leaving: list[Row] = []
        self._wake = asyncio.Event()
        self._draining = False
        self.computing = False  # right now, in the thread

    def enter(self) -> Feed:
        """A new audio. Raises `Refused` where there are too many."""
        if self._draining:
            raise Refused(503, DRAINING)
        if len(self._feeds) >= self._limits.connections:
            message = f"{len(self._feeds)} audio streams are open, as many as are served at a time"
            raise Refused(503, f"{message}; try again later")
        if self.late > self._limits.late_seconds:
            message = f"results of the open audio streams are {self.late:.1f} seconds late"
            raise Refused(503, f"{message}; try again later")
        # nothing that the thread computes with is touched: the row is only noted
        feed = Feed(self, self._streams.enter(), self._limits, self.recognizer.rate)
        self._feeds.add(feed)
        self._metrics.streams.set(len(self._feeds))
        return feed

    @property
    def late(self) -> float:
        """Seconds since the first chunk of the line was due."""
        return max(0.0, time.monotonic() - self._line[0][0]) if self._line else 0.0

    def offer(self, feed: Feed) -> None:
        """Let a feed stand in line, if it is ready."""
        if feed.ready:
            feed.in_line = True
            # not from now on: who had to wait for the chunk before is late with this one, too
            feed.due = max(feed.due + self._chunk, feed.came)
            heappush(self._line, (feed.due, next(self._order), feed))
            self._wake.set()

    def remove(self, feed: Feed) -> None:
        """Forget a feed; what is computed of it right now is thrown away."""
        if feed in self._feeds:
            self._feeds.remove(feed)
            feed.closed = True
            feed.finish()
            self._leaving.append(feed.row)
            self._wake.set()
            self._metrics.streams.set(len(self._feeds))

    def drain(self) -> None:
        """Take no new audio; those that are open end with what was heard of them."""
        self._draining = True
        for feed in list(self._feeds):
            feed.end()

    async def run(self) -> None:
        with ThreadPoolExecutor(1, "streams") as thread:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._line or self._leaving:
                    await self._batch(thread)

    async def _batch(self, thread: ThreadPoolExecutor) -> None:
        """Compute the first ones of the line."""
        chosen = self._first()
        taken = {feed: feed.take() for feed in chosen}
        pieces = {feed.row: piece for feed, (piece, _) in taken.items()}
        leaving, self._leaving = self._leaving, []
        began = time.monotonic()
        self.computing = True
        try:
            results = await asyncio.get_running_loop().run_in_executor(
                thread, self._compute, pieces, leaving
            )
        except Exception:  # a bug, or no memory: it ends these audios and no other
            logger.exception("%d streams failed", len(chosen))
            for feed in chosen:
                feed.finish(Refused(500, FAILED))
            return
        finally:
            self.computing = False
        done = time.monotonic()
        if chosen:
            self._count(done - began, [piece for piece, _ in taken.values()])
        for feed, (piece, came) in taken.items():
            feed.busy = False
            result = results.get(feed.row)
            if result is not None and not feed.closed:
                self._metrics.lag.observe(done - came)
                feed.tell(result)
            if piece.final:
                feed.finish()
            self.offer(feed)

    def _first(self) -> list[Feed]:
        """The first ones of the line, which leave it."""
        chosen: list[Feed] = []
        while self._line and len(chosen) < self._limits.batch:
            *_, feed = heappop(self._line)
            feed.in_line = False
            if feed.ready:  # not closed in the meantime
                feed.busy = True
                chosen.append(feed)
        return chosen

    def _compute(self, pieces: dict[Row, Piece], leaving: Sequence[Row]) -> dict[Row, Result]:
        """In the thread, which alone touches the state of rows."""
        for row in leaving:
            self._streams.leave(row)
        return self._streams.accept(pieces)

    def _count(self, seconds: float, pieces: Sequence[Piece]) -> None:
        samples = sum(len(piece.samples) for piece in pieces)
        self._metrics.rows.observe(len(pieces))
        self._metrics.work.labels("stream").inc(seconds)
        self._metrics.audio.labels("stream").inc(samples / self.recognizer.rate)
