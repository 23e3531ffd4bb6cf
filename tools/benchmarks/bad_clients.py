"""Clients that misbehave, for `serve.py misbehave`: they send half messages, garbage or silence,
end suddenly, or do not read.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import numpy as np

# kinds of bad clients and their share; the last two have audio computed, as much as good ones do
BAD = {
    "silent": 0.25,
    "half a head": 0.2,
    "half a message": 0.25,
    "garbage": 0.2,
    "lost": 0.08,
    "unread": 0.02,
}


def be_bad(address: str, size: int, sound: np.ndarray, seconds: float, told: object) -> None:
    """`size` clients; `told` hears when they begin, and at the end what they did."""
    told.send("begun")
    until, counts = time.monotonic() + seconds, {}
    said = (32767 * np.clip(sound, -1, 1)).astype("<i2").tobytes()
    kinds = random.Random(0).choices([*BAD], [*BAD.values()], k=size)

    async def run() -> None:
        await asyncio.gather(*(misbehave(address, kind, said, until, counts) for kind in kinds))

    asyncio.run(run())
    told.send(counts)


async def misbehave(address: str, kind: str, sound: bytes, until: float, counts: dict) -> None:
    """Again and again until the end."""
    host, _, port = address.removeprefix("http://").partition(":")
    draw = random.Random(hash(kind) ^ int(1e6 * time.monotonic()))
    while time.monotonic() < until:
        counts[kind] = counts.get(kind, 0) + 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                async with asyncio.timeout(max(0.1, until - time.monotonic())):
                    await _bad(kind, reader, writer, sound, draw)
            finally:
                writer.transport.abort()
        await asyncio.sleep(draw.uniform(0.5, 5))


async def _bad(kind: str, reader, writer, sound: bytes, draw: random.Random) -> None:
    """One connection of a kind."""
    head = (
        b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    if kind == "half a head":
        writer.write(head[: draw.randrange(1, len(head) - 2)])
        await reader.read()
        return
    writer.write(head)
    await reader.readuntil(b"\r\n\r\n")
    if kind == "silent":
        while await reader.read(4096):
            pass
    elif kind == "half a message":
        writer.write(frame(2, sound[:8000])[: draw.randrange(2, 4000)])
        while await reader.read(4096):
            pass
    elif kind == "garbage":
        for _ in range(20):
            payload = draw.randbytes(draw.randrange(1, 3000))
            writer.write(payload if draw.random() < 0.3 else frame(draw.choice((1, 2)), payload))
            await writer.drain()
            await asyncio.sleep(0.05)
    elif kind == "lost":
        for at in range(0, draw.randrange(3200, 64000), 3200):
            writer.write(frame(2, sound[at : at + 3200]))
            await asyncio.sleep(0.1)
    else:  # unread: speaks on and on, and reads nothing
        writer.transport.pause_reading()
        while True:
            for at in range(0, len(sound), 3200):
                writer.write(frame(2, sound[at : at + 3200]))
                await writer.drain()
                await asyncio.sleep(0.1)


def frame(kind: int, payload: bytes) -> bytes:
    """A whole websocket message of a client (RFC 6455, 5.2), masked by zeros."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([0x80 | kind]) + length + bytes(4) + payload
