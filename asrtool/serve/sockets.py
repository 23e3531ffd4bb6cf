"""Websockets: asrtool's own protocol in JSON, and that of sherpa-onnx's clients.

docs/serving.md describes both. A connection is two tasks: one reads its samples into a `Feed` and
waits where that is full, the other writes results and gives up where nobody reads them.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET

import numpy as np
import soxr
from aiohttp import WSCloseCode, WSMessage, WSMsgType, web

from asrtool.data import audio
from asrtool.errors import UserError
from asrtool.log import logger
from asrtool.serve import Limits, Refused
from asrtool.serve.answers import dump, streamed
from asrtool.serve.batches import Batches, Feed
from asrtool.serve.metrics import Metrics
from asrtool.serve.model import Served
from asrtool.streaming import Result

FORMATS = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
FULL_SCALE = np.float32(1 / (1 << 15))  # of 16-bit samples
STARTED = {"rate", "format", "partials", "words"}  # what a `start` may say
CODES = {503: WSCloseCode.TRY_AGAIN_LATER, 500: WSCloseCode.INTERNAL_ERROR}
MINUTE = 60
# that wait in this process and in the kernel, which left alone would take megabytes
SEND_BYTES, RECEIVE_BYTES = 1 << 14, 1 << 16


class Over(Exception):
    """The client has closed the connection, or lost it."""


class Sound:
    """Binary messages -> samples at the model's rate."""

    def __init__(self, form: str, rate: int, model_rate: int) -> None:
        self._type, self._rate = FORMATS[form], rate
        self._seconds = 0.0
        same = rate == model_rate
        self._resampler = None if same else soxr.ResampleStream(rate, model_rate, 1, "float32")

    def __call__(self, message: bytes) -> np.ndarray:
        """Samples (T,) float32. Raises `UserError` for bytes that are no samples."""
        if len(message) % self._type.itemsize:
            raise UserError(
                f"a message of {len(message)} bytes ends within a sample; samples have "
                f"{self._type.itemsize} bytes"
            )
        samples = np.frombuffer(message, self._type)
        if not len(samples):
            return np.zeros(0, np.float32)
        # there are dozens of messages a second, so what is right takes no more than this
        if self._type.kind == "i":
            samples = samples * FULL_SCALE
        elif not (samples.min() >= -1 and samples.max() <= 1):
            samples = audio.one_channel(samples, rate=self._rate, start=self._seconds)
        self._seconds += len(samples) / self._rate
        return samples if self._resampler is None else self._resampler.resample_chunk(samples)

    def rest(self) -> np.ndarray:
        """What the resampler kept."""
        nothing = np.zeros(0, np.float32)
        return nothing if self._resampler is None else self._resampler.resample_chunk(nothing, True)


class Protocol:
    """asrtool's own: `start`, samples, `end`; `ready`, `partial` and `final` results, `end`."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.sound: Sound | None = None
        self.partials, self.words = True, True

    def hello(self) -> str | None:
        """What the server says first."""
        return dump({"type": "ready", "model": self.served.name, **_needs(self.served)})

    def read(self, message: WSMessage) -> np.ndarray | None:
        """The samples of a message, perhaps none; None: no more will come."""
        if message.type == WSMsgType.BINARY:
            if self.sound is None:
                self.sound = Sound("s16le", self.served.rate, self.served.rate)
            return self.sound(message.data)
        fields = _fields(message.data)
        kind = fields.pop("type", None)
        if kind == "end" and not fields:
            return None
        if kind != "start":
            raise UserError(
                'expected {"type": "start", ...}, samples in binary messages, or {"type": "end"}'
            )
        self._start(fields)
        return np.zeros(0, np.float32)

    def _start(self, fields: dict) -> None:
        if self.sound is not None:
            raise UserError("start: it comes once, before the samples")
        if unknown := sorted(fields.keys() - STARTED):
            known = ", ".join(sorted(STARTED))
            raise UserError(f"start: unknown key {unknown[0]!r} (known: {known})")
        form, rate = fields.get("format", "s16le"), fields.get("rate", self.served.rate)
        if not isinstance(form, str) or form not in FORMATS:
            raise UserError(f"start: format is {form!r}, expected one of {', '.join(FORMATS)}")
        if not isinstance(rate, int) or isinstance(rate, bool):
            raise UserError(f"start: rate is {rate!r}, expected a whole number of Hz")
        for name in ("partials", "words"):
            value = fields.get(name, True)
            if not isinstance(value, bool):
                raise UserError(f"start: {name} is {value!r}, expected true or false")
            setattr(self, name, value)
        self.sound = Sound(form, audio.check_rate(rate, "start"), self.served.rate)

    def result(self, result: Result) -> str | None:
        """What is sent of a result; None: nothing."""
        if not result.final and not self.partials:
            return None
        return dump(streamed(result, self.words))

    def error(self, message: str) -> str | None:
        return dump({"type": "error", "message": message})

    def goodbye(self, seconds: float) -> str:
        """What follows the last result."""
        return dump({"type": "end", "seconds": round(seconds, 3)})


class SherpaProtocol(Protocol):
    """float32 samples at the model's rate and `Done`; JSON texts with their tokens, and `Done!`."""

    def __init__(self, served: Served) -> None:
        super().__init__(served)
        self.sound = Sound("f32le", served.rate, served.rate)
        self._segment = 0

    def hello(self) -> None:
        return None

    def read(self, message: WSMessage) -> np.ndarray | None:
        if message.type == WSMsgType.BINARY:
            return self.sound(message.data)
        if message.data == "Done":
            return None
        raise UserError("expected float32 samples in binary messages, then the text Done")

    def result(self, result: Result) -> str:
        text, live = result.hypothesis, self.served.live
        shift = live.model.frame_shift
        fields = {
            "text": text.text,
            "tokens": [live.tokenizer.piece(token) for token in text.tokens],
            "timestamps": [
                round(position * shift - result.start, 3) for position in text.positions or ()
            ],
            "segment": self._segment,
            "start_time": round(result.start, 3),
            "is_final": result.final,
        }
        self._segment += result.final
        return dump(fields)

    def error(self, message: str) -> None:
        """These clients print whatever they get: the reason goes with the close."""

    def goodbye(self, seconds: float) -> str:
        return "Done!"


def _needs(served: Served) -> dict:
    """What a client must know before it sends samples."""
    return {"rate": served.rate, "chunk_ms": served.live.settings.chunk_ms}


def _fields(text: str) -> dict:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise UserError(f"expected an object of JSON in a text message, got {text[:80]!r}")
    return fields


@dataclass
class Talk:
    """One connection."""

    socket: web.WebSocketResponse
    feed: Feed
    protocol: Protocol
    limits: Limits
    since: float | None = 0.0  # when the last message was taken; None: the client need not send

    async def run(self) -> None:
        """Until the audio has ended and was answered. Raises `Over`, or `UserError` for what the
        client is told.
        """
        self.since = time.monotonic()
        if (hello := self.protocol.hello()) is not None:
            await self._send(hello)
        parts = self._listen(), self._tell(), self._watch()
        tasks = [asyncio.create_task(part) for part in parts]
        try:
            async with asyncio.timeout(self.limits.connection_seconds):
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except TimeoutError:
            most = self.limits.connection_seconds / MINUTE
            raise UserError(f"the connection was open for {most:g} minutes, the most") from None
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _listen(self) -> None:
        """Read until the client closes the connection."""
        while True:
            message = await self.socket.receive()
            if message.type not in (WSMsgType.BINARY, WSMsgType.TEXT):
                raise Over
            if self.since is None:
                raise UserError("a message came behind the end of the audio")
            samples = self.protocol.read(message)
            if samples is not None:
                self.since = None  # while there is no room, it is our turn
                await self.feed.put(samples)
                self.since = time.monotonic()
                continue
            self.since = None
            if self.protocol.sound is not None:
                await self.feed.put(self.protocol.sound.rest())
            self.feed.end()

    async def _watch(self) -> None:
        """Until the client sends nothing for too long: one timer, not one for each message."""
        idle = self.limits.idle_seconds
        while True:
            silent = 0.0 if self.since is None else time.monotonic() - self.since
            if silent >= idle:
                raise UserError(f"no message came for {idle:g} seconds")
            await asyncio.sleep(idle - silent)

    async def _tell(self) -> None:
        """Write until the last result."""
        while (result := await self.feed.get()) is not None:
            if (text := self.protocol.result(result)) is not None:
                await self._send(text)
        await self._send(self.protocol.goodbye(self.feed.row.seconds))

    async def _send(self, text: str) -> None:
        try:
            async with asyncio.timeout(self.limits.send_seconds):
                await self.socket.send_str(text)
        except (TimeoutError, ConnectionError):  # nobody reads
            raise Over from None


def handler(
    served: Served,
    batches: Batches | None,
    limits: Limits,
    metrics: Metrics,
    language: Callable[[Served], Protocol],
) -> Callable:
    """What answers the websockets of a path."""

    async def converse(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(
            max_msg_size=limits.message_bytes,
            compress=False,
            timeout=limits.send_seconds,
            writer_limit=SEND_BYTES,
        )
        await socket.prepare(request)
        _bound(request)
        protocol = language(served)
        try:
            await _talk(socket, protocol, served, batches, limits)
            metrics.ended.labels("done").inc()
            await _close(socket, limits, WSCloseCode.OK, "")
        except Over:
            metrics.ended.labels("closed").inc()
            _cut(request)
        except asyncio.CancelledError:  # the connection was lost
            metrics.ended.labels("closed").inc()
            raise
        except UserError as error:
            metrics.ended.labels("refused" if isinstance(error, Refused) else "error").inc()
            await _tell_error(socket, limits, protocol, error)
        except Exception:
            metrics.ended.labels("failed").inc()
            logger.exception("a stream failed")
            _cut(request)
        return socket

    return converse


async def _talk(
    socket: web.WebSocketResponse,
    protocol: Protocol,
    served: Served,
    batches: Batches | None,
    limits: Limits,
) -> None:
    """One audio; its place is free as soon as it was answered, before the connection is closed."""
    if batches is None:
        raise Refused(
            400,
            f"this model does not stream ({served.obstacle}); send files to "
            "/v1/audio/transcriptions",
        )
    feed = batches.enter()
    try:
        await Talk(socket, feed, protocol, limits).run()
    finally:
        feed.close()


async def _tell_error(
    socket: web.WebSocketResponse, limits: Limits, protocol: Protocol, error: UserError
) -> None:
    status = error.status if isinstance(error, Refused) else 400
    code = CODES.get(status, WSCloseCode.POLICY_VIOLATION)
    try:
        async with asyncio.timeout(limits.send_seconds):
            if (text := protocol.error(str(error))) is not None:
                await socket.send_str(text)
    except (TimeoutError, ConnectionError):
        return
    await _close(socket, limits, code, str(error))


async def _close(
    socket: web.WebSocketResponse, limits: Limits, code: WSCloseCode, reason: str
) -> None:
    """Say goodbye; `reason` in at most the 123 bytes that a close frame has for it."""
    short = reason.encode()[:123].decode(errors="ignore").encode()
    try:
        async with asyncio.timeout(limits.send_seconds):
            await socket.close(code=code, message=short)
    except (TimeoutError, ConnectionError):
        pass


def _bound(request: web.Request) -> None:
    """Limit what waits for a client that reads nothing, and of one that sends much."""
    transport = request.transport
    if transport is not None:
        transport.set_write_buffer_limits(SEND_BYTES)
        endpoint = transport.get_extra_info("socket")
        endpoint.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BYTES)
        endpoint.setsockopt(SOL_SOCKET, SO_RCVBUF, RECEIVE_BYTES)


def _cut(request: web.Request) -> None:
    """End a connection whose client does not read: a polite close would wait for it."""
    if request.transport is not None:
        request.transport.abort()
