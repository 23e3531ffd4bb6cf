"""A toy model behind a server on a port of its own, and clients that speak its protocols."""

from __future__ import annotations

import asyncio
import json
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

try:
    import prometheus_client  # noqa: F401 - asrtool.serve needs it
    from aiohttp import ClientSession, ClientWebSocketResponse, FormData, WSMsgType
except ModuleNotFoundError as missing:
    pytest.skip(f"{missing.name} is missing: pip install -e '.[serve]'", allow_module_level=True)

from asrtool.errors import UserError
from asrtool.model_folder import Experiment
from asrtool.recognizer import Recognizer
from asrtool.serve import Limits, run
from asrtool.serve.app import Service
from asrtool.serve.model import Served, served
from asrtool.streaming import EndConfig

ENDS = EndConfig(pause=9.0)  # an utterance of the toy is one text
SECONDS = 60.0  # after which a scenario has failed
CHUNK_MS = 160.0


def toy_served(exp: Path) -> Served:
    """The model of a toy experiment; it streams if it can."""
    trained = Experiment.open(exp)
    try:
        streaming = trained.decode_config(streaming=True)
    except UserError as error:
        streaming = error
    recognizer = Recognizer.load(trained)
    can = getattr(recognizer.model.encoder, "obstacle", None) is None
    return served("toy", recognizer, streaming, CHUNK_MS if can else None)


def play(scenario: Coroutine) -> object:
    """Run a scenario to its end."""
    return asyncio.run(asyncio.wait_for(scenario, SECONDS))


class Client:
    """Requests to one server."""

    def __init__(self, session: ClientSession, service: Service) -> None:
        self.session, self.service = session, service

    def connect(self, path: str = "/v1/stream", **options: object) -> object:
        return self.session.ws_connect(path, **options)

    async def post(self, path: Path | None = None, data: bytes = b"", **fields: object) -> tuple:
        """Status, media type and text of the answer to a transcription."""
        form = FormData()
        name = path.name if path is not None else "a.wav"
        form.add_field("file", data or path.read_bytes(), filename=name)
        for key, value in ({"model": "toy"} | fields).items():
            for one in value if isinstance(value, list) else [value]:
                form.add_field(key, one)
        async with self.session.post("/v1/audio/transcriptions", data=form) as answer:
            return answer.status, answer.content_type, await answer.text()

    async def get(self, path: str, **options: object) -> tuple[int, str]:
        async with self.session.get(path, **options) as answer:
            return answer.status, await answer.text()

    async def idle(self) -> None:
        """Until nothing of any audio is kept."""
        batches = self.service.batches
        while batches._feeds or len(batches._streams):
            await asyncio.sleep(0.01)

    async def metric(self, name: str) -> float:
        _, text = await self.get("/metrics")
        found = [x.split()[-1] for x in text.splitlines() if x.startswith(name + " ")]
        return float(found[0]) if found else 0.0  # nothing was counted yet


@asynccontextmanager
async def serving(
    served: Served, limits: Limits | None = None, token: str | None = None, **headers: str
) -> AsyncIterator[Client]:
    service = Service(served, limits, ENDS, token)
    async with run.running(service) as address, ClientSession(address, headers=headers) as session:
        yield Client(session, service)


@contextmanager
def in_thread(served: Served, token: str | None = None, ends: EndConfig = ENDS) -> Iterator[str]:
    """The address of a server, for clients that are no coroutines."""
    loop, stop, started = asyncio.new_event_loop(), asyncio.Event(), queue.Queue()

    async def work() -> None:
        async with run.running(Service(served, token=token, ends=ends)) as address:
            started.put(address)
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(work(),))
    thread.start()
    try:
        yield started.get(timeout=SECONDS)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(SECONDS)
        loop.close()


async def hear(socket: ClientWebSocketResponse) -> list[dict]:
    """All messages until the server closes."""
    return [json.loads(message.data) async for message in socket if message.type == WSMsgType.TEXT]


async def transcribe(client: Client, samples: np.ndarray, size: int = 800) -> list[dict]:
    """What the server says of one audio, sent as fast as it is taken."""
    async with client.connect() as socket:
        hearing = asyncio.create_task(hear(socket))
        for at in range(0, len(samples), size):
            await socket.send_bytes((32768 * samples[at : at + size]).astype("<i2").tobytes())
        await socket.send_str('{"type": "end"}')
        return await hearing


def texts(messages: list[dict]) -> str:
    return " ".join(one["text"] for one in messages if one["type"] == "final").strip()


def sounds(toy: Path) -> list[tuple[Path, str, np.ndarray]]:
    """File, text and samples of the test set."""
    rows = (toy / "data" / "test" / "text").read_text().splitlines()
    found = []
    for row in rows:
        name, _, text = row.partition(" ")
        path = toy / "data" / "test" / "audio" / f"{name}.wav"
        found.append((path, text, soundfile.read(path, dtype="float32")[0]))
    return found
