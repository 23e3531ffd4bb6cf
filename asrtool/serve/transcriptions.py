"""OpenAI's route for files, `/v1/audio/transcriptions`, and its list of models."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from aiohttp import BodyPartReader, web

from asrtool.serve import Limits, Refused
from asrtool.serve.answers import FORMATS, GRANULARITIES, transcript
from asrtool.serve.files import Files
from asrtool.serve.model import Served

FIELD_BYTES = 4096  # of a field that is no file
PART = 1 << 16  # bytes that are read at a time
# what other servers do with these would have to be left out here, so a request with them is refused
UNSUPPORTED = {
    "prompt": "this model takes no prompt",
    "language": "this model is not told the language",
    "chunking_strategy": "how a file is cut is a matter of the server's decoding config",
    "include[]": "nothing can be included",
    "stream": "texts are not sent in parts; /v1/stream sends them while the audio comes",
}


@dataclass
class Form:
    """The fields of a request."""

    model: str | None = None
    response_format: str = "json"
    granularities: list[str] = field(default_factory=list)
    name: str | None = None  # of the file, once it is there
    size: int = 0  # of the file, in bytes

    def take(self, key: str, value: str, served: Served) -> None:
        """One field. Raises `Refused` where it asks for something that is not there."""
        if key == "model":
            if value != served.name:
                raise Refused(
                    404, f"there is no model {value!r} here; it is called {served.name!r}", key
                )
            self.model = value
        elif key == "response_format":
            if value not in FORMATS:
                raise _unknown(key, value, FORMATS)
            self.response_format = value
        elif key in ("timestamp_granularities[]", "timestamp_granularities"):
            if value not in GRANULARITIES:
                raise _unknown("timestamp_granularities", value, GRANULARITIES)
            self.granularities.append(value)
        elif key == "temperature":
            if value.strip() not in ("", "0", "0.0"):
                raise Refused(400, "temperature: the search is not random; leave it out", key)
        elif key in UNSUPPORTED:
            if value.strip().lower() not in ("", "false"):
                raise Refused(400, f"{key}: {UNSUPPORTED[key]}; leave it out", key)
        else:
            raise Refused(400, f"unknown field {key!r}", key)


def _unknown(key: str, value: str, known: tuple[str, ...]) -> Refused:
    return Refused(400, f"{key} is {value!r}, expected one of {', '.join(known)}", key)


def transcribe(served: Served, files: Files, limits: Limits) -> Callable:
    """What answers a POST of a file."""

    async def answer(request: web.Request) -> web.Response:
        if request.content_type != "multipart/form-data":
            raise Refused(
                400, f"the body is {request.content_type}, expected multipart/form-data with `file`"
            )
        with files.place(), tempfile.NamedTemporaryFile(prefix="asrtool-serve-") as target:
            try:
                async with asyncio.timeout(limits.request_seconds):
                    form = await _read(request, target, served, limits)
                    result = await files.recognize(Path(target.name), form.name)
            except TimeoutError:
                raise Refused(
                    408, f"no text within {limits.request_seconds:g} seconds; send shorter files"
                ) from None
        granularities = form.granularities or ["segment"]
        text, kind = transcript(result, form.response_format, granularities)
        return web.Response(text=text, content_type=kind, charset="utf-8")

    return answer


async def _read(request: web.Request, target: object, served: Served, limits: Limits) -> Form:
    """The form; its file goes to `target`."""
    form = Form()
    try:
        async for part in await request.multipart():
            if not isinstance(part, BodyPartReader):
                raise Refused(400, "a multipart body within the multipart body")
            if part.name == "file":
                await _save(part, target, form, limits)
            else:
                form.take(part.name or "", await _text(part), served)
    except ValueError as error:  # what aiohttp says of a broken body
        if isinstance(error, Refused):
            raise
        raise Refused(400, f"the multipart body is broken: {error}") from None
    if form.name is None:
        raise Refused(400, "the field `file` is missing", "file")
    if form.model is None:
        raise Refused(400, f"the field `model` is missing; it is {served.name!r} here", "model")
    if not form.size:
        raise Refused(400, f"{form.name}: the file is empty", "file")
    return form


async def _save(part: BodyPartReader, target: object, form: Form, limits: Limits) -> None:
    if form.name is not None:
        raise Refused(400, "there are two files; send them one by one", "file")
    form.name = PurePosixPath(part.filename or "file").name or "file"
    while data := await part.read_chunk(PART):
        form.size += len(data)
        if form.size > limits.file_bytes:
            raise Refused(
                413, f"{form.name}: larger than {limits.file_bytes} bytes, the most that is served"
            )
        target.write(data)
    target.flush()


async def _text(part: BodyPartReader) -> str:
    """A field that is no file."""
    data = b""
    while more := await part.read_chunk(PART):
        data += more
        if len(data) > FIELD_BYTES:
            raise Refused(413, f"{part.name}: longer than {FIELD_BYTES} bytes", part.name)
    return data.decode("utf-8", "replace")


def models(served: Served) -> Callable:
    """What answers `/v1/models`."""

    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [served.describe()]})

    return answer


def model(served: Served) -> Callable:
    """What answers `/v1/models/<name>`."""

    async def answer(request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name != served.name:
            raise Refused(404, f"there is no model {name!r} here; it is called {served.name!r}")
        return web.json_response(served.describe())

    return answer
