"""Ranks notice when another rank dies, and end with a message that names it.

A collective with a killed rank fails at once over gloo, but blocks for ten minutes over nccl. So
every rank keeps a connection to rank 0 open. The system closes it when the process dies for any
reason; TCP keep-alive notices a machine that loses power. Rank 0 notifies the others, and all end
soon. A rank that ends with an error announces it: the others give it time to print its message, and
end without one of their own.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from asrtool.errors import UserError

GRACE = 3.0  # seconds from the news that a rank died to the end
PATIENCE = 15.0  # seconds from the news of an error to the end
JOIN = 60.0  # seconds in which all ranks must connect
BYE, FAIL, LOST = "bye", "fail", "lost"


@contextmanager
def watched(rank: int, world: int, share_port: Callable[[int], int]) -> Iterator[None]:
    """Within the block, this process ends if another rank ends without leaving the block.

    share_port: broadcasts a number of rank 0 to all ranks.
    """
    watch = _Hub(world) if rank == 0 else _Spoke(rank)
    watch.connect(share_port)
    thread = threading.Thread(target=watch.watch, name="peers", daemon=True)
    thread.start()
    # loader processes must not keep the connection open
    os.register_at_fork(after_in_child=watch.close)
    try:
        yield
    except BaseException:
        watch.say(FAIL)
        raise
    watch.say(BYE)
    thread.join(GRACE)
    watch.close()


def _mind(connection: socket.socket) -> None:
    """Enable keep-alive, which notices within about 20 seconds that the other machine is dead."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", 5),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", 20_000),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _receive(connection: socket.socket) -> list[str]:
    """The messages that have arrived (short, sent whole); empty if the other end is gone."""
    try:
        return connection.recv(4096).decode(errors="replace").split("\n")[:-1]
    except OSError:
        return []


def _send(connection: socket.socket, words: str) -> None:
    with contextlib.suppress(OSError):  # the other end is gone too
        connection.sendall(f"{words}\n".encode())


def _end(event: str, rank_lost: int, host: str, rank: int) -> None:
    """End this process, whatever its main thread is waiting for."""
    time.sleep(GRACE if event == LOST else PATIENCE)
    # one message per machine, and one from the lowest rank that is left
    speaks = rank == (1 if rank_lost == 0 else 0) or os.environ.get("LOCAL_RANK") == "0"
    if event == LOST and speaks:
        text = (
            f"{Path(sys.argv[0]).stem}: rank {rank_lost} on {host} died (killed, out of memory, or "
            "its machine failed)"
        )
        advice = "all ranks stop; the same command continues from the last checkpoint"
        print(f"{text}; {advice}", file=sys.stderr, flush=True)
    os._exit(1)


class _Hub:
    """Rank 0: notices the end of any other rank, and passes it on."""

    def __init__(self, world: int) -> None:
        self._world = world
        self._others: dict[int, tuple[socket.socket, str]] = {}
        self._left = False

    def connect(self, share_port: Callable[[int], int]) -> None:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        with socket.create_server(
            ("", 0), family=family, backlog=self._world, dualstack_ipv6=both
        ) as server:
            server.settimeout(JOIN)
            share_port(server.getsockname()[1])
            while len(self._others) < self._world - 1:
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    missing = sorted(set(range(1, self._world)) - set(self._others))
                    ranks = ", ".join(map(str, missing))
                    raise UserError(
                        f"no connection from rank {ranks} within {JOIN:g} seconds"
                    ) from None
                connection.settimeout(None)
                _mind(connection)
                words = connection.makefile("r").readline().split()
                if len(words) == 2 and words[0].isdigit():  # else not a rank
                    self._others[int(words[0])] = (connection, words[1])
        for connection, _ in self._others.values():
            _send(connection, "all")

    def watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, (connection, _) in self._others.items():
                selector.register(connection, selectors.EVENT_READ, rank)
            for _ in range(len(self._others)):
                for key, _ in selector.select():
                    self._heard(key.data, _receive(key.fileobj))
                    selector.unregister(key.fileobj)

    def _heard(self, rank: int, words: list[str]) -> None:
        if BYE in words or self._left:
            return
        event, host = FAIL if FAIL in words else LOST, self._others[rank][1]
        self._pass_on(f"{event} {rank} {host}")
        _end(event, rank, host, rank=0)

    def _pass_on(self, words: str) -> None:
        for connection, _ in self._others.values():
            _send(connection, words)

    def say(self, message: str) -> None:
        self._left = True
        self._pass_on(f"{message} 0 {socket.gethostname()}")

    def close(self) -> None:
        for connection, _ in self._others.values():
            connection.close()


class _Spoke:
    """Every other rank: learns of the end of others from rank 0, and notices that of rank 0."""

    def __init__(self, rank: int) -> None:
        self._rank, self._left = rank, False
        self._hub: socket.socket | None = None

    def connect(self, share_port: Callable[[int], int]) -> None:
        port, address = share_port(0), os.environ["MASTER_ADDR"]
        try:
            self._hub = socket.create_connection((address, port), timeout=JOIN)
            self._hub.sendall(f"{self._rank} {socket.gethostname()}\n".encode())
            self._hub.recv(4)
            self._hub.settimeout(None)
        except OSError as error:
            text = (
                f"rank {self._rank} cannot reach rank 0 at {address}:{port} ({error}); do the "
                "machines' firewalls"
            )
            raise UserError(f"{text} let their ports through to each other?") from error
        _mind(self._hub)

    def watch(self) -> None:
        words = _receive(self._hub)
        event, rank_lost, host = (
            words[0].split() if words else (LOST, "0", os.environ["MASTER_ADDR"])
        )
        if event != BYE and not self._left:
            _end(event, int(rank_lost), host, self._rank)

    def say(self, message: str) -> None:
        self._left = True
        _send(self._hub, message)

    def close(self) -> None:
        self._hub.close()
