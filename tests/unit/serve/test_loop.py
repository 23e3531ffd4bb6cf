"""An event loop that disturbs little while a batch is computed."""

from __future__ import annotations

import asyncio
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from asrtool.serve import loop

HOUR = 3600.0  # a test that waits for it hangs


class Files:
    """A selector that pauses, the wake-up of its loop, and a client that has sent a message."""

    def __init__(self, pause: float, busy: bool) -> None:
        self.selector = loop.Paced(lambda: busy, pause)
        self.pairs = {name: socket.socketpair() for name in ("own", "client")}
        for name, (end, _) in self.pairs.items():
            self.selector.register(end, selectors.EVENT_READ, name)
        self.select(0)
        self.send("client")

    def send(self, name: str) -> None:
        self.pairs[name][1].send(b"!")

    def select(self, timeout: float | None) -> set[str]:
        return {key.data for key, _ in self.selector.select(timeout)}

    def close(self) -> None:
        self.selector.close()
        for pair in self.pairs.values():
            for end in pair:
                end.close()


@pytest.fixture
def files() -> Iterator[Callable[[float, bool], Files]]:
    made: list[Files] = []

    def make(pause: float, busy: bool) -> Files:
        made.append(Files(pause, busy))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_messages_wait_while_a_batch_is_computed(files):
    here = files(0.2, True)
    began = time.monotonic()
    assert here.select(None) == {"client"}
    assert time.monotonic() - began > 0.15


def test_nothing_waits_while_none_is(files):
    assert files(HOUR, False).select(None) == {"client"}


def test_the_loops_own_wake_up_brings_what_came_before(files):
    here = files(HOUR, True)
    here.send("own")
    assert here.select(None) == {"client", "own"}


def test_timers_and_what_is_due_now_do_not_wait(files):
    here = files(HOUR, True)
    assert here.select(0.01) == {"client"}
    assert here.select(0) == {"client"}


def test_a_batch_ends_and_the_loop_goes_on():
    """As in `Batches`: an executor, whose end reaches the loop at once."""
    read: list[bytes] = []

    async def serve() -> None:
        mine, other = socket.socketpair()
        with mine, other, ThreadPoolExecutor(1) as thread:
            mine.setblocking(False)
            here, arrived = asyncio.get_running_loop(), asyncio.Event()
            here.add_reader(mine, lambda: (read.append(mine.recv(9)), arrived.set()))
            await here.run_in_executor(thread, other.send, b"hello")
            await arrived.wait()  # it came while the batch was computed
            here.remove_reader(mine)
            await asyncio.sleep(0.01)

    loop.run(serve(), lambda: True, HOUR)
    assert read == [b"hello"]
