"""The event loop of a server whose processor also computes.

Whoever speaks sends 25 messages or more a second, and each wakes the event loop, which on a core
that computes costs more than it does: the caches are cold for it, and afterwards for the batch.
While a batch is computed, the loop looks at the sockets every `PAUSE` seconds and reads all that
came; the end of the batch wakes it at once.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Callable, Coroutine

PAUSE = 0.03  # seconds; a chunk takes ten times as long or more, so nobody notices


class Paced(selectors.DefaultSelector):
    """What waits for files to become readable; while `busy` is true it comes back only now and
    then, or for the loop's own wake-up, by which other threads and signals reach it.
    """

    def __init__(self, busy: Callable[[], bool], pause: float) -> None:
        super().__init__()
        self._busy, self._pause = busy, pause
        self._own = selectors.DefaultSelector()
        self._looked = 0.0

    def register(self, fileobj: object, events: int, data: object = None) -> selectors.SelectorKey:
        if not self.get_map():  # a loop registers its own wake-up before anything else
            self._own.register(fileobj, events)
        return super().register(fileobj, events, data)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self._busy() and (timeout is None or timeout > 0):
            pause = max(0.0, self._looked + self._pause - time.monotonic())
            if timeout is not None:
                pause = min(pause, timeout)
                timeout -= pause
            self._own.select(pause)
        found = super().select(timeout)
        self._looked = time.monotonic()
        return found

    def close(self) -> None:
        self._own.close()
        super().close()


def run(coroutine: Coroutine, busy: Callable[[], bool], pause: float = PAUSE) -> None:
    """As `asyncio.run`, in a loop that disturbs little while `busy` is true."""
    selector = Paced(busy, pause)
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector)) as runner:
        runner.run(coroutine)
