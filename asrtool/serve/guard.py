"""Who may ask, and how long they may take for it; errors as OpenAI's clients expect them.

Without a token the server is for this machine alone. Browsers are on this machine too, and open
pages of others: a page of another origin is refused, and so is a name that only pretends to be this
machine (DNS rebinding). With a token, whoever knows it may ask.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import SplitResult, urlsplit

from aiohttp import web

from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.serve import Refused
from asrtool.serve.metrics import Metrics

OPEN = {"/", "/health"}  # paths that need no token, and those of the page's files
OPEN_BELOW = "/page/"
BEARER = "Bearer "
AGAIN = "5"  # seconds after which a client that was refused may try again
KINDS = {401: "authentication_error", 403: "permission_error", 404: "not_found_error"}


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine."""
    name = host.strip("[]").lower()
    if name == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def error(status: int, message: str, parameter: str | None = None) -> web.Response:
    """An error as JSON."""
    kind = KINDS.get(status, "server_error" if status >= 500 else "invalid_request_error")
    fields = {"message": message, "type": kind, "param": parameter, "code": None}
    headers = {"Retry-After": AGAIN} if status == 503 else {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response({"error": fields}, status=status, headers=headers)


def errors(metrics: Metrics) -> Callable:
    """Middleware: what handlers raise becomes an answer, and answers are counted."""

    @web.middleware
    async def middleware(request: web.Request, handler: Callable) -> web.StreamResponse:
        try:
            response = await handler(request)
        except Refused as refusal:
            response = error(refusal.status, str(refusal), refusal.parameter)
        except UserError as wrong:
            response = error(400, str(wrong))
        except ConnectionError:  # the client is gone: nobody is told, and nothing is wrong here
            raise
        except web.HTTPException as answer:
            response = error(answer.status, f"{request.method} {request.path}: {answer.reason}")
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            response = error(500, "the server failed; its log says why")
        resource = request.match_info.route.resource
        route = resource.canonical if resource is not None else "other"
        metrics.requests.labels(route, str(response.status)).inc()
        return response

    return middleware


def access(token: str | None) -> Callable:
    """Middleware: refuses those who may not ask."""

    @web.middleware
    async def middleware(request: web.Request, handler: Callable) -> web.StreamResponse:
        if token is None:
            _check_local(request)
        elif _is_socket(request) or not _is_open(request.path):
            _check_token(request, token)
        return await handler(request)

    return middleware


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_BELOW)


def _is_socket(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"


def _check_token(request: web.Request, token: str) -> None:
    given = request.headers.get("Authorization", "")
    given = given.removeprefix(BEARER) if given.startswith(BEARER) else ""
    if not given and _is_socket(request):  # browsers send no header with a websocket
        given = request.query.get("token", "")
    if not hmac.compare_digest(given.encode("utf-8", "surrogateescape"), token.encode()):
        what = "the token is not the right one" if given else "a token is missing"
        raise Refused(
            401, f"{what}; send it as `Authorization: Bearer <token>`, or as ?token= of a websocket"
        )


def _check_local(request: web.Request) -> None:
    host = request.host
    if not is_loopback(_split(f"//{host}").hostname or ""):
        raise Refused(403, f"{host} is no name of this machine; a server for others has a --token")
    origin = request.headers.get("Origin")
    if origin is not None and _split(origin).netloc != host:
        raise Refused(403, f"a page of {origin} may not use this server, which has no --token")


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError:
        raise Refused(400, f"{address!r} is no address") from None


class Turnstile:
    """Lets a few requests in with each turn of the event loop, in the order in which they came.

    Between two turns, whoever is connected already is read and answered. So a thousand that come at
    once delay the audio of the others by a turn of these few, not of a thousand.
    """

    def __init__(self, few: int = 8) -> None:
        self._few = few
        self._left = few  # that may still pass in this turn
        self._line: deque[asyncio.Future] = deque()

    async def wait(self) -> None:
        """Until this one's turn has come."""
        loop = asyncio.get_running_loop()
        if self._left == self._few:
            loop.call_soon(self._turn)
        if self._left:
            self._left -= 1
            return
        self._line.append(loop.create_future())
        await self._line[-1]

    def _turn(self) -> None:
        """The next turn has begun."""
        self._left = self._few
        while self._line and self._left:
            first = self._line.popleft()
            if not first.done():  # it has not gone away in the meantime
                first.set_result(None)
                self._left -= 1
        if self._left < self._few:
            asyncio.get_running_loop().call_soon(self._turn)

    def middleware(self) -> Callable:
        """Middleware: every request waits for its turn."""

        @web.middleware
        async def middleware(request: web.Request, handler: Callable) -> web.StreamResponse:
            await self.wait()
            return await handler(request)

        return middleware


class Heads:
    """Closes connections that do not send the head of a request in time: a client that sends
    nothing, or one byte now and then, would hold a socket for ever.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._since: dict[object, float] = {}  # connection -> since when it owes us a request
        self._served: dict[object, int] = {}  # connection -> requests that are answered right now

    def middleware(self) -> Callable:
        """Middleware, the outermost: notes which connections are being answered."""

        @web.middleware
        async def middleware(request: web.Request, handler: Callable) -> web.StreamResponse:
            connection = request.protocol
            self._served[connection] = self._served.get(connection, 0) + 1
            self._since.pop(connection, None)
            try:
                return await handler(request)
            finally:
                self._served[connection] -= 1
                if not self._served[connection]:
                    del self._served[connection]

        return middleware

    async def run(self, server: web.Server) -> None:
        """Look around, until cancelled."""
        while True:
            await asyncio.sleep(self._seconds / 4)
            self.sweep(server, time.monotonic())

    def sweep(self, server: web.Server, now: float) -> None:
        """Close those that are late."""
        idle = [one for one in server.connections if one not in self._served]
        self._since = {one: self._since.get(one, now) for one in idle}
        for connection, since in list(self._since.items()):
            if now - since > self._seconds:
                connection.force_close()
                if connection.transport is not None:
                    connection.transport.abort()
