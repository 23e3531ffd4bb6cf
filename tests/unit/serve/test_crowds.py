"""A thousand that come at once must not delay those who are here: what a turn of the event loop may
take on is bounded.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import struct

import pytest
from aiohttp.client_exceptions import ClientConnectionResetError
from aiohttp.test_utils import make_mocked_request

import asrtool.serve
from asrtool.bin import serve
from asrtool.serve import Limits, guard, run
from asrtool.serve.metrics import Metrics
from tests.toy_service import hear, play, serving

CROWD = 100
HEAD = (
    b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def most_in_a_turn(marks: list[int]) -> int:
    return max(later - earlier for earlier, later in zip(marks, marks[1:], strict=False))


def test_a_crowd_is_let_in_a_few_at_a_time(live, monkeypatch):
    """All of it is connected and has sent its requests before the loop looks for the first time."""
    accepted, begun = [], []
    call = run.web.Server.__call__
    monkeypatch.setattr(
        run.web.Server, "__call__", lambda server: accepted.append(0) or call(server)
    )
    enter = asrtool.serve.batches.Batches.enter
    monkeypatch.setattr(
        asrtool.serve.batches.Batches, "enter", lambda self: begun.append(0) or enter(self)
    )

    async def scenario() -> None:
        async with serving(live, Limits(connections=CROWD)) as client:
            address = client.session._base_url
            # no turn of the loop in here: the kernel keeps them
            crowd = [socket.create_connection((address.host, address.port)) for _ in range(CROWD)]
            for one in crowd:
                one.sendall(HEAD)
            marks = [(len(accepted), len(begun))]
            while len(begun) < CROWD:
                await asyncio.sleep(0)
                marks.append((len(accepted), len(begun)))
            for one in crowd:
                one.close()
            await client.idle()
        for counts in zip(*marks, strict=True):
            assert counts[0] == 0 and counts[-1] == CROWD
            assert most_in_a_turn(list(counts)) <= 8

    play(scenario())


def test_requests_that_wait_have_their_turns_in_order():
    passed, gate = [], guard.Turnstile(few=3)

    async def one(number: int) -> None:
        await gate.wait()
        passed.append(number)

    async def scenario() -> None:
        tasks = [asyncio.create_task(one(number)) for number in range(20)]
        await asyncio.sleep(0)
        tasks[5].cancel()  # who goes away holds nobody up
        marks = [len(passed)]
        while len(passed) < 19:
            await asyncio.sleep(0)
            marks.append(len(passed))
        assert passed == [number for number in range(20) if number != 5]
        assert most_in_a_turn(marks) == 3
        # nobody is left, and the gate is open
        await asyncio.gather(*(one(number) for number in range(2)))

    play(scenario())


def test_beyond_the_limit_a_connection_is_cut_off_and_the_others_stay(live, monkeypatch):
    monkeypatch.setattr(asrtool.serve, "SPARE", 1)

    async def scenario() -> None:
        async with serving(live, Limits(connections=1, files=1)) as client:
            address = client.session._base_url
            async with client.connect() as talk:
                assert (await talk.receive_json())["type"] == "ready"
                waiting = [
                    await asyncio.open_connection(address.host, address.port) for _ in range(2)
                ]
                reader, writer = await asyncio.open_connection(address.host, address.port)
                with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
                    await reader.readexactly(1)
                writer.close()
                await talk.send_str('{"type": "end"}')
                assert (await hear(talk))[-1]["type"] == "end"
            for _, one in waiting:
                one.close()

    play(scenario())


def test_who_goes_away_before_the_answer_is_no_failure(live, caplog):
    """Neither in the log, which would fill the disk, nor for those who come later."""

    async def scenario() -> None:
        async with serving(live) as client:
            address = client.session._base_url
            for _ in range(20):
                one = socket.create_connection((address.host, address.port))
                one.sendall(HEAD)
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                one.close()  # by a reset
            await asyncio.sleep(0.1)
            await client.idle()
            assert (await client.get("/health"))[0] == 200
            gone = ClientConnectionResetError("Cannot write to closing transport")

            async def handler(request: object) -> None:
                raise gone

            with pytest.raises(ClientConnectionResetError):
                await guard.errors(Metrics())(make_mocked_request("GET", "/"), handler)

    play(scenario())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_how_late_the_loop_is_can_be_seen(live):
    async def scenario() -> None:
        async with serving(live) as client:
            await asyncio.sleep(0.15)
            assert await client.metric("asrtool_loop_delay_seconds_count") >= 1

    play(scenario())


def test_the_collector_of_garbage_passes_over_the_model(toy_stream, monkeypatch):
    """It would hold up all streams while it looks at what stays."""
    frozen, young = gc.get_freeze_count(), gc.get_threshold()
    seen = []

    def started(coroutine: object, busy: object) -> None:
        coroutine.close()
        seen.extend((gc.get_freeze_count(), gc.get_threshold()[0]))

    monkeypatch.setattr("asrtool.serve.loop.run", started)
    try:
        serve.main([str(toy_stream / "exp"), "--port", "0"])
    finally:
        gc.unfreeze()
        gc.set_threshold(*young)
    assert seen[0] > frozen + 10_000 and seen[1] > young[0]
