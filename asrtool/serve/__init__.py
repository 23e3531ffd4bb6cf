"""A trained model as a service: websockets for live audio, HTTP for files, a page to try it.

    sockets  -> Batches (one thread: the audios whose next chunk is there, side by side) -> results
    requests -> Files (another thread, of lower priority: windows of several files) -> texts

The event loop reads, checks and queues; it never computes. Each queue has a bound: behind it, a
connection is not read further, so TCP slows its sender down, or a request is refused with a status
that says when to come again. What one connection does is a matter of that connection alone.

The server is aiohttp's. One package reads HTTP, multipart and websockets, with limits of size; it
stops reading a socket whose messages nobody takes; and its client speaks the same to tests.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from asrtool.errors import UserError


class Refused(UserError):
    """A request that is not answered: an HTTP status says which kind of error it is."""

    def __init__(self, status: int, message: str, parameter: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.parameter = parameter  # of the request, where one is to blame


# connections beside those that are served: they send a head, are refused, or close
SPARE = 256


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What clients may take. Seconds are of the clock, where they are not of audio."""

    connections: int = 256  # open audio streams
    batch: int = 32  # audios that are computed side by side
    late_seconds: float = 2.0  # by which open streams wait; then no more are taken
    queue_seconds: float = 2.0  # of audio of a connection that wait; then it is not read
    message_bytes: int = 256 << 10  # of one websocket message
    idle_seconds: float = 60.0  # without a message; then the connection is closed
    connection_seconds: float = 4 * 3600.0  # of a connection; then it is closed
    unread: int = 64  # results that a client has not read; then its audio waits
    send_seconds: float = 10.0  # until a client reads what is sent; then it is closed
    file_bytes: int = 25 << 20  # of a file
    file_seconds: float = 3600.0  # of audio in a file
    files: int = 16  # that wait, and uploads that run; then more are refused
    request_seconds: float = 600.0  # from the first byte of an upload to its answer
    head_seconds: float = 20.0  # until a connection has sent the head of a request

    @property
    def sockets(self) -> int:
        """Connections that may be open, whatever they do."""
        return self.connections + self.files + SPARE

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} is {getattr(self, field.name):g}, expected above 0")
