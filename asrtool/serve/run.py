"""A server from its first connection to its end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from asrtool.errors import UserError
from asrtool.serve import Limits, guard
from asrtool.serve.app import Service

BACKLOG = 1024  # connections that the kernel keeps until they are accepted
ACCEPTED = 8  # in one turn of the event loop: who is here waits for a few newcomers, not for all
SIGNALS = (signal.SIGINT, signal.SIGTERM)
# of a request that is none its client is told; logged, it would fill the disk for whoever likes
HTTP = logging.Logger("http", logging.CRITICAL)


async def serve(
    service: Service,
    host: str,
    port: int,
    grace: float = 30.0,
    tls: ssl.SSLContext | None = None,
    started: Callable[[str], None] = lambda address: None,
) -> None:
    """Answer until SIGINT or SIGTERM; then take nothing new, and answer what was sent for at most
    `grace` seconds. port: 0 takes a free one. started: is told the address.

    Raises `UserError` for a host that others can reach, where the service has no token.
    """
    check_host(host, service.token)
    async with running(service, host, port, grace, tls) as address:
        started(address)
        await _signal()


@asynccontextmanager
async def running(
    service: Service,
    host: str = "127.0.0.1",
    port: int = 0,
    grace: float = 30.0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[str]:
    """A server that answers at the address that this gives, while the context is open."""
    runner = web.AppRunner(
        service.app(),
        access_log=None,
        logger=HTTP,
        handler_cancellation=True,
        keepalive_timeout=service.limits.head_seconds,
        shutdown_timeout=grace,
    )
    await runner.setup()
    sweeper = asyncio.create_task(service.heads.run(runner.server))
    door = None
    try:
        door = await _open(runner.server, service.limits, host, port, tls)
        yield _address(door.sockets[0].getsockname(), tls)
    finally:
        if door is not None:
            door.close()
        sweeper.cancel()
        await runner.cleanup()


async def _open(
    server: web.Server, limits: Limits, host: str, port: int, tls: ssl.SSLContext | None
) -> asyncio.Server:
    """Listen. A thousand that come at once are let in a few at a time, and one for whom there is no
    room is cut off before anything is kept of it.
    """

    def welcome() -> asyncio.BaseProtocol:
        return server() if len(server.connections) < limits.sockets else _NoRoom()

    loop = asyncio.get_running_loop()
    # asyncio takes its backlog for both: what the kernel keeps, and what one turn accepts
    door = await loop.create_server(welcome, host, port, ssl=tls, backlog=ACCEPTED)
    for listening in door.sockets:
        with listening.dup() as same:
            same.listen(BACKLOG)
    return door


class _NoRoom(asyncio.Protocol):
    """A connection that is cut off at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        transport.abort()


async def _signal() -> None:
    """Wait for a signal; the second one ends the process at once."""
    loop, asked = asyncio.get_running_loop(), asyncio.Event()
    for number in SIGNALS:
        loop.add_signal_handler(number, asked.set)
    await asked.wait()
    for number in SIGNALS:
        loop.remove_signal_handler(number)


def _address(name: tuple, tls: ssl.SSLContext | None) -> str:
    host, port = name[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'http' if tls is None else 'https'}://{shown}:{port}"


def check_host(host: str, token: str | None) -> None:
    """Raise `UserError` for a host that others can reach, where there is no token."""
    if token is None and not guard.is_loopback(host):
        raise UserError(
            f"--host {host}: others can reach this address, so a token is needed: give --token, "
            "--token-file or ASRTOOL_TOKEN"
        )


def check_port(host: str, port: int) -> None:
    """Raise `UserError` where an address cannot be taken."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise UserError(f"{host}:{port}: {error.strerror or error}") from None
