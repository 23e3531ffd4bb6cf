"""The application: paths, the tasks behind them, and how they end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from aiohttp import web

from asrtool import page
from asrtool.log import logger
from asrtool.serve import Limits, guard, sockets, transcriptions
from asrtool.serve.batches import Batches
from asrtool.serve.files import Files
from asrtool.serve.metrics import Metrics
from asrtool.serve.model import Served
from asrtool.streaming import EndConfig

LOOK = 0.1  # seconds after which the event loop should come back
SLACK = 1 << 20  # bytes of a form beside its file
# the page is complete in itself: nothing of another host, nothing written into it
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' "
    "data:; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Service:
    """What answers requests for one model."""

    def __init__(
        self,
        served: Served,
        limits: Limits | None = None,
        ends: EndConfig | None = None,
        token: str | None = None,
    ) -> None:
        self.served, self.limits, self.token = served, limits or Limits(), token
        self.metrics = Metrics()
        self.heads = guard.Heads(self.limits.head_seconds)
        self.files = Files(served.files, self.limits, self.metrics)
        self.batches = None
        if served.live is not None:
            ends = ends or EndConfig()
            self.batches = Batches(served.live, ends, self.limits, self.metrics)
        self._tasks: list[asyncio.Task] = []
        self._draining = False

    @property
    def computing(self) -> bool:
        """Whether a batch of live audio is being computed."""
        return self.batches is not None and self.batches.computing

    def app(self) -> web.Application:
        """The application; it belongs to one event loop."""
        app = web.Application(
            client_max_size=self.limits.file_bytes + SLACK,
            middlewares=[
                self.heads.middleware(),
                guard.Turnstile().middleware(),
                guard.errors(self.metrics),
                guard.access(self.token),
            ],
        )
        told = (self.served, self.batches, self.limits, self.metrics)
        sherpa = sockets.handler(*told, sockets.SherpaProtocol)
        answers = {name: _answer(name, text) for name, text in page.files(__package__).items()}
        index = answers.pop("index.html")

        async def root(request: web.Request) -> web.StreamResponse:
            """The page; sherpa-onnx's clients know no other path for a websocket."""
            wants_socket = request.headers.get("Upgrade", "").lower() == "websocket"
            return await (sherpa if wants_socket else index)(request)

        app.router.add_get("/", root)
        for name, answer in answers.items():
            app.router.add_get(f"/page/{name}", answer)
        app.router.add_get("/v1/stream", sockets.handler(*told, sockets.Protocol))
        app.router.add_get("/v1/models", transcriptions.models(self.served))
        app.router.add_get("/v1/models/{name}", transcriptions.model(self.served))
        app.router.add_post(
            "/v1/audio/transcriptions",
            transcriptions.transcribe(self.served, self.files, self.limits),
        )
        app.router.add_get("/health", self._health)
        app.router.add_get("/metrics", self._metrics)
        app.cleanup_ctx.append(self._run)
        app.on_shutdown.append(self._drain)
        return app

    async def _run(self, app: web.Application) -> AsyncIterator[None]:
        self._tasks = [asyncio.create_task(self.files.run())]
        if self.batches is not None:
            self._tasks.append(asyncio.create_task(self.batches.run()))
        self._tasks.append(asyncio.create_task(watch_loop(self.metrics)))
        yield
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _drain(self, app: web.Application) -> None:
        logger.info("shutting down: audio that was sent is still recognised")
        self._draining = True
        self.files.drain()
        if self.batches is not None:
            self.batches.drain()

    async def _health(self, request: web.Request) -> web.Response:
        dead = any(task.done() for task in self._tasks)
        state = "failed" if dead else "draining" if self._draining else "ok"
        status = 200 if state == "ok" else 503
        return web.json_response({"status": state, "model": self.served.name}, status=status)

    async def _metrics(self, request: web.Request) -> web.Response:
        text, kind = self.metrics.text()
        return web.Response(body=text, headers={"Content-Type": kind})


async def watch_loop(metrics: Metrics) -> None:
    """Note how late the event loop is, until cancelled."""
    while True:
        due = time.monotonic() + LOOK
        await asyncio.sleep(LOOK)
        metrics.loop.observe(time.monotonic() - due)


def _answer(name: str, text: str) -> Callable:
    """What answers with a file of the page."""
    kind = {"html": "text/html", "js": "text/javascript", "css": "text/css"}[name.split(".")[1]]

    async def answer(request: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind, charset="utf-8", headers=HEADERS)

    return answer
