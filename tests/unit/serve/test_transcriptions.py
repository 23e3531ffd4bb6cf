"""Files over HTTP: OpenAI's route, its formats and errors, and the queue behind it."""

from __future__ import annotations

import asyncio
import json
import re
import threading

import numpy as np
import pytest
from aiohttp import FormData

from asrtool.recognizer import Recognizer
from asrtool.serve import Limits
from tests.toy_service import play, serving, sounds, texts, transcribe


def test_every_format_has_the_text(whole, toy):
    path, text, samples = sounds(toy)[1]

    async def scenario() -> None:
        async with serving(whole) as client:
            status, kind, body = await client.post(path)
            assert (status, kind, json.loads(body)) == (200, "application/json", {"text": text})
            assert (await client.post(path, response_format="text"))[1:] == (
                "text/plain",
                text + "\n",
            )
            *_, srt = await client.post(path, response_format="srt")
            *_, vtt = await client.post(path, response_format="vtt")
            assert srt.startswith("1\n00:00:0") and vtt.startswith("WEBVTT\n\n00:00:0")
            for subtitles in (srt, vtt):
                lines = [x for x in subtitles.splitlines()[1:] if re.search("[a-z]", x)]
                assert " ".join(lines) == text
            verbose = json.loads((await client.post(path, response_format="verbose_json"))[2])
            assert verbose["text"] == text and "words" not in verbose
            assert verbose["duration"] == pytest.approx(len(samples) / 8000, abs=0.03)
            assert " ".join(one["text"] for one in verbose["segments"]) == text
            assert {"id", "start", "end", "tokens", "avg_logprob"} <= verbose["segments"][0].keys()
            fields = {"timestamp_granularities[]": ["word"], "response_format": "verbose_json"}
            *_, body = await client.post(path, **fields)
            words = json.loads(body)["words"]
            assert [word["word"] for word in words] == text.split()
            times = [word[key] for word in words for key in ("start", "end")]
            assert times == sorted(times) and "segments" not in json.loads(body)

    play(scenario())


def test_what_a_file_is_heard_as_has_its_accent(live, toy_stream):
    path, text, _ = sounds(toy_stream)[0]

    async def scenario() -> None:
        async with serving(live) as client:
            *_, body = await client.post(path, response_format="verbose_json")
            assert json.loads(body)["text"] == text
            assert set(json.loads(body)["classes"]["accent"]) == {"high", "low"}

    play(scenario())


WRONG = {
    "model": ({"model": "whisper-1"}, 404, "it is called 'toy'"),
    "format": ({"response_format": "xml"}, 400, "response_format is 'xml', expected one of json"),
    "granularity": ({"timestamp_granularities[]": "letter"}, 400, "'letter', expected one of word"),
    "prompt": ({"prompt": "names"}, 400, "prompt: this model takes no prompt"),
    "temperature": ({"temperature": "0.7"}, 400, "the search is not random"),
    "stream": ({"stream": "true"}, 400, "/v1/stream sends them"),
    "a field": ({"beam": "5"}, 400, "unknown field 'beam'"),
    "no audio": ({"data": b"hello" * 99}, 400, "a.wav: "),
    "an empty file": ({"data": b"", "empty": True}, 400, "a.wav: the file is empty"),
    "a large file": ({"data": bytes(70_000)}, 413, "larger than 65536 bytes"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_as_openais_clients_expect_it(whole, toy, wrong):
    fields, expected, sentence = WRONG[wrong]

    async def scenario() -> None:
        async with serving(whole, Limits(file_bytes=1 << 16)) as client:
            if fields.get("empty"):
                form = FormData()
                form.add_field("file", b"", filename="a.wav")
                form.add_field("model", "toy")
                async with client.session.post("/v1/audio/transcriptions", data=form) as answer:
                    status, body = answer.status, await answer.text()
            else:
                path = None if "data" in fields else sounds(toy)[1][0]
                status, _, body = await client.post(path, **fields)
            assert status == expected
            error = json.loads(body)["error"]
            assert sentence in error["message"] and error["type"] in (
                "invalid_request_error",
                "not_found_error",
            )
            assert "asrtool-serve-" not in body  # the name of the temporary file

    play(scenario())


def test_bodies_that_are_no_forms_are_refused(whole):
    async def post(client, **options) -> str:
        async with client.session.post("/v1/audio/transcriptions", **options) as answer:
            assert answer.status == 400
            return (await answer.json())["error"]["message"]

    async def scenario() -> None:
        async with serving(whole) as client:
            assert "expected multipart/form-data" in await post(client, json={"file": "a.wav"})
            headers = {"Content-Type": "multipart/form-data; boundary=x"}
            broken = await post(client, data=b"nothing of the kind", headers=headers)
            assert "multipart body is broken" in broken or "is missing" in broken
            form = FormData()
            form.add_field("model", "toy", content_type="text/plain", filename=None)
            form.add_field("other", b"", filename="b")
            assert "unknown field 'other'" in await post(client, data=form)
            form = FormData()
            form.add_field("file", b"x", filename="a.wav")
            assert "`model` is missing; it is 'toy'" in await post(client, data=form)

    play(scenario())


def test_audio_that_is_too_long_is_not_decoded_to_its_end(whole, toy):
    path = sounds(toy)[1][0]

    async def scenario() -> None:
        async with serving(whole, Limits(file_seconds=0.5)) as client:
            status, _, body = await client.post(path)
            assert status == 413 and "longer than 0.5 seconds" in body and path.name in body

    play(scenario())


class Held:
    """Stops the thread of the files until it is let go."""

    def __init__(self, monkeypatch) -> None:
        self.go, self.calls = threading.Event(), []
        plain = Recognizer.transcribe

        def transcribe(recognizer, prepared):
            self.calls.append(len(prepared))
            self.go.wait(30)
            return plain(recognizer, prepared)

        monkeypatch.setattr(Recognizer, "transcribe", transcribe)


def test_files_that_wait_are_recognised_together_and_more_are_refused(whole, toy, monkeypatch):
    held, files = Held(monkeypatch), sounds(toy)[:6]

    async def scenario() -> None:
        async with serving(whole, Limits(files=5)) as client:
            waiting = [asyncio.create_task(client.post(files[0][0]))]
            while not held.calls:
                await asyncio.sleep(0.01)
            waiting += [asyncio.create_task(client.post(path)) for path, *_ in files[1:5]]
            while len(client.service.files._jobs) < 4:
                await asyncio.sleep(0.01)
            async with client.session.post("/v1/audio/transcriptions", data=FormData()) as late:
                assert late.status == 400  # no multipart: needs no place
            status, _, body = await client.post(files[5][0])
            assert status == 503 and "5 files are waiting already" in body
            waiting[2].cancel()  # gives up before its turn
            while len(client.service.files._jobs) > 3:
                await asyncio.sleep(0.01)
            held.go.set()
            found = await asyncio.gather(*waiting, return_exceptions=True)
            kept = [0, 1, 3, 4]
            assert [json.loads(found[at][2])["text"] for at in kept] == [
                files[at][1] for at in kept
            ]
            assert held.calls == [1, 3]
            assert await client.metric("asrtool_files_waiting") == 0

    play(scenario())


def test_live_audio_and_files_do_not_disturb_each_other(live, toy_stream):
    several = sounds(toy_stream)[:6]

    async def scenario() -> None:
        async with serving(live) as client:
            found = await asyncio.gather(
                *(transcribe(client, samples) for _, _, samples in several),
                *(client.post(path, response_format="text") for path, *_ in several),
            )
            said = [text for _, text, _ in several]
            assert [texts(messages) for messages in found[:6]] == said
            assert [body.strip() for *_, body in found[6:]] == said

    play(scenario())


def test_one_that_fails_fails_alone(whole, toy, monkeypatch):
    held, (first, second, third) = Held(monkeypatch), sounds(toy)[:3]
    plain = Recognizer.transcribe

    def transcribe(recognizer, prepared):
        if any(len(one.inputs) == 77 for one in prepared):
            raise RuntimeError("out of memory")
        return plain(recognizer, prepared)

    monkeypatch.setattr(Recognizer, "transcribe", transcribe)
    prepare = Recognizer.prepare

    def prepared(recognizer, samples, rate):
        one = prepare(recognizer, samples, rate)
        bad = len(samples) == len(third[2])
        return one._replace(inputs=one.inputs[:77]) if bad else one

    monkeypatch.setattr(Recognizer, "prepare", prepared)

    async def scenario() -> None:
        async with serving(whole) as client:
            tasks = [asyncio.create_task(client.post(first[0]))]
            while not held.calls:
                await asyncio.sleep(0.01)
            tasks += [asyncio.create_task(client.post(one[0])) for one in (second, third)]
            while len(client.service.files._jobs) < 2:
                await asyncio.sleep(0.01)
            held.go.set()
            answers = await asyncio.gather(*tasks)
            assert [status for status, *_ in answers] == [200, 200, 500]
            assert "the log of the server says why" in answers[2][2]
            assert json.loads(answers[1][2])["text"] == second[1]

    play(scenario())


def test_an_upload_that_does_not_end_is_given_up(whole):
    async def endless():
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
        while True:
            yield b"1"
            await asyncio.sleep(0.02)

    async def scenario() -> None:
        async with serving(whole, Limits(request_seconds=0.3)) as client:
            headers = {"Content-Type": "multipart/form-data; boundary=x"}
            async with client.session.post(
                "/v1/audio/transcriptions", data=endless(), headers=headers
            ) as answer:
                assert answer.status == 408
            assert client.service.files._places == 0

    play(scenario())


def test_the_model_is_listed_with_what_clients_of_streams_need(live, whole):
    async def scenario() -> None:
        async with serving(live) as client:
            (model,) = json.loads((await client.get("/v1/models"))[1])["data"]
            assert model == json.loads((await client.get("/v1/models/toy"))[1])
            assert model["id"] == "toy" and model["object"] == "model"
            assert (model["rate"], model["stream"], model["chunk_ms"]) == (8000, True, 160)
            assert model["labels"] == ["accent"] and model["words"]
            assert (await client.get("/v1/models/other"))[0] == 404
        async with serving(whole) as client:
            (model,) = json.loads((await client.get("/v1/models"))[1])["data"]
            assert not model["stream"] and "labels" not in model

    play(scenario())


def test_silence_has_no_text(whole, tmp_path):
    import soundfile

    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(8000, np.float32), 8000)

    async def scenario() -> None:
        async with serving(whole) as client:
            for kind in ("json", "text", "srt", "vtt", "verbose_json"):
                status, *_ = await client.post(path, response_format=kind)
                assert status == 200

    play(scenario())
