"""Live audio over websockets: the protocols, the limits, and clients that misbehave."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from socket import SO_RCVBUF, SOL_SOCKET

import numpy as np
import pytest
import soxr

from asrtool.data import audio
from asrtool.errors import UserError
from asrtool.serve import Limits, sockets
from asrtool.streaming import Stream, together
from asrtool.streaming.together import Streams
from tests.toy_service import ENDS, hear, play, serving, sounds, texts, transcribe


def test_partial_results_come_while_the_audio_does_and_the_final_one_has_all(live, toy_stream):
    _, text, samples = sounds(toy_stream)[0]

    async def scenario() -> None:
        async with serving(live) as client, client.connect() as socket:
            ready = await socket.receive_json()
            assert ready == {"type": "ready", "model": "toy", "rate": 8000, "chunk_ms": 160.0}
            sent = (32768 * samples).astype("<i2").tobytes()
            half = len(sent) // 4 * 2
            await socket.send_bytes(sent[:half])
            first = await socket.receive_json()  # although the audio has not ended
            assert first["type"] == "partial" and first["end"] <= len(samples) / 8000
            await socket.send_bytes(sent[half:])
            await socket.send_str('{"type": "end"}')
            *partial, final, end = await hear(socket)
        assert {one["type"] for one in partial} <= {"partial"}
        assert (final["type"], final["text"]) == ("final", text)
        assert [word["text"] for word in final["words"]] == text.split()
        times = [word[key] for word in final["words"] for key in ("start", "end")]
        assert times == sorted(times) and times[-1] <= final["end"]
        assert all(0 < word["confidence"] <= 1 for word in final["words"])
        assert sum(final["classes"]["accent"].values()) == pytest.approx(1, abs=1e-3)
        assert end == {"type": "end", "seconds": round(len(samples) / 8000, 3)}

    play(scenario())


def test_many_connections_share_batches_and_each_gets_its_own_text(live, toy_stream):
    several = sounds(toy_stream)

    async def scenario() -> None:
        async with serving(live) as client:
            found = await asyncio.gather(
                *(transcribe(client, samples) for _, _, samples in several)
            )
            assert [texts(messages) for messages in found] == [text for _, text, _ in several]
            batches = await client.metric("asrtool_batch_rows_count")
            rows = await client.metric("asrtool_batch_rows_sum")
            assert rows / batches > 3
            total = sum(len(samples) for *_, samples in several) / 8000
            heard = await client.metric('asrtool_audio_seconds_total{kind="stream"}')
            assert heard == pytest.approx(total, abs=0.01)
            await client.idle()
            assert await client.metric("asrtool_streams") == 0

    play(scenario())


@pytest.mark.parametrize("start", [{"format": "f32le"}, {"rate": 16000}, {"rate": 11025}])
def test_other_samples_are_taken_as_well(live, toy_stream, start):
    _, text, samples = sounds(toy_stream)[1]
    if "rate" in start:
        samples = soxr.resample(samples, 8000, start["rate"])
    kind = "<f4" if "format" in start else "<i2"
    sent = (samples * (1 if "format" in start else 32768)).astype(kind).tobytes()

    async def scenario() -> None:
        async with serving(live) as client, client.connect() as socket:
            await socket.send_json({"type": "start", "partials": False, "words": False, **start})
            for at in range(0, len(sent), 4000):
                await socket.send_bytes(sent[at : at + 4000])
            await socket.send_json({"type": "end"})
            ready, final, end = await hear(socket)
        assert final["text"] == text and "words" not in final
        assert end["seconds"] == pytest.approx(
            len(sent) / len(sent[: np.dtype(kind).itemsize]) / start.get("rate", 8000), abs=0.01
        )

    play(scenario())


def test_a_client_of_sherpa_onnx_is_understood(live, toy_stream):
    """Its own server is at /, takes floats and the text Done, and says Done! at the end."""
    _, text, samples = sounds(toy_stream)[0]

    async def scenario() -> None:
        async with serving(live) as client, client.connect("/") as socket:
            for at in range(0, len(samples), 800):
                await socket.send_bytes(samples[at : at + 800].astype("<f4").tobytes())
            await socket.send_str("Done")
            *results, done = [message.data async for message in socket]
        assert done == "Done!"
        last = json.loads(results[-1])
        assert (last["text"], last["is_final"], last["segment"]) == (text, True, 0)
        assert "".join(last["tokens"]).strip() == text
        assert last["timestamps"] == sorted(last["timestamps"]) and last["start_time"] == 0
        assert len(last["timestamps"]) == len(last["tokens"])
        assert not json.loads(results[0])["is_final"]

    play(scenario())


NAN = np.array([0.1, np.nan], "<f4").tobytes()
WRONG = {
    "no JSON": (["hello"], "expected an object of JSON", 1008),
    "another type": ([{"type": "begin"}], 'expected {"type": "start"', 1008),
    "an unknown key": ([{"type": "start", "lang": "de"}], "unknown key 'lang'", 1008),
    "a rate that is none": ([{"type": "start", "rate": 3}], "3 Hz", 1008),
    "a rate in words": ([{"type": "start", "rate": "16k"}], "whole number of Hz", 1008),
    "a format": ([{"type": "start", "format": "mp3"}], "one of s16le, f32le", 1008),
    "a format in a list": ([{"type": "start", "format": ["s16le"]}], "one of s16le, f32le", 1008),
    "a rate of the sky": ([{"type": "start", "rate": 10**30}], "Hz", 1008),
    "a deep list": (["[" * 1000], "expected an object of JSON", 1008),
    "start twice": ([{"type": "start"}] * 2, "it comes once", 1008),
    "half a sample": ([b"123"], "ends within a sample", 1008),
    "NaN": ([{"type": "start", "format": "f32le"}, NAN], "NaN or infinite", 1008),
    "more behind the end": ([bytes(8), {"type": "end"}, bytes(8)], "behind the end", 1008),
    "a message too long": ([bytes(2048)], None, 1009),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_said_in_a_sentence_and_ends_the_connection(live, wrong):
    sent, sentence, code = WRONG[wrong]

    async def scenario() -> None:
        async with serving(live, Limits(message_bytes=1024)) as client:
            async with client.connect() as socket:
                for one in sent:
                    is_bytes = isinstance(one, bytes)
                    text = one if isinstance(one, str) else None if is_bytes else json.dumps(one)
                    await (socket.send_bytes(one) if is_bytes else socket.send_str(text))
                messages = await hear(socket)
                assert socket.close_code == code
            if sentence is not None:
                assert messages[-1]["type"] == "error" and sentence in messages[-1]["message"]
            await client.idle()

    # the end may come before what follows it: a connection that is answered is closed as well
    if wrong == "more behind the end":
        live_limits_hold_back(live, scenario)
        return
    play(scenario())


def live_limits_hold_back(live, scenario) -> None:
    """Let nothing be computed, so that what is behind the end comes before the answer."""
    plain = Streams.accept
    Streams.accept = lambda self, pieces: __import__("time").sleep(0.3) or plain(self, pieces)
    try:
        play(scenario())
    finally:
        Streams.accept = plain


def test_a_client_that_falls_silent_is_closed(live):
    async def scenario() -> None:
        async with serving(live, Limits(idle_seconds=0.1)) as client, client.connect() as socket:
            await socket.send_bytes(bytes(100))
            *_, error = await hear(socket)
            assert error["message"] == "no message came for 0.1 seconds"

    play(scenario())


def test_a_connection_does_not_last_for_ever(live):
    async def scenario() -> None:
        limits = Limits(connection_seconds=0.3, idle_seconds=5)
        async with serving(live, limits) as client, client.connect() as socket:
            *_, error = await hear(socket)
            assert "was open for" in error["message"] and socket.close_code == 1008

    play(scenario())


def test_no_more_connections_than_the_limit(live, toy_stream):
    _, text, samples = sounds(toy_stream)[0]

    async def scenario() -> None:
        async with serving(live, Limits(connections=1)) as client:
            async with client.connect() as socket:
                await socket.receive()
                async with client.connect() as other:
                    (error,) = await hear(other)
                    assert "as many as are served" in error["message"]
                    assert other.close_code == 1013
            await client.idle()
            assert texts(await transcribe(client, samples)) == text

    play(scenario())


def test_clients_that_do_not_read_or_vanish_change_nothing_for_others(
    live, toy_stream, monkeypatch
):
    monkeypatch.setattr(sockets, "SEND_BYTES", 2048)
    _, text, samples = sounds(toy_stream)[0]
    sent = (32768 * samples).astype("<i2").tobytes()

    async def slow(client) -> None:
        """Sends without end and never reads."""
        socket = await client.connect()
        transport = socket._response.connection.transport
        transport.pause_reading()
        transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_RCVBUF, 1)
        with suppress(ConnectionError):  # until it is cut off
            while True:
                await socket.send_bytes(sent)

    async def vanish(client) -> None:
        socket = await client.connect()
        await socket.send_bytes(sent)
        socket._response.connection.transport.abort()

    async def scenario() -> None:
        limits = Limits(send_seconds=0.2, unread=2)
        async with serving(live, limits) as client:
            bad = [asyncio.create_task(slow(client)) for _ in range(2)]
            bad += [asyncio.create_task(vanish(client)) for _ in range(3)]
            for _ in range(2):
                assert texts(await transcribe(client, samples)) == text
            await asyncio.gather(*bad)
            assert await client.metric('asrtool_streams_ended_total{how="closed"}') == 5
            await client.idle()

    play(scenario())


def test_a_failure_ends_the_audios_of_its_batch_and_no_others(live, toy_stream, monkeypatch):
    _, text, samples = sounds(toy_stream)[0]

    async def scenario() -> None:
        async with serving(live) as client:
            with monkeypatch.context() as patched:
                patched.setattr(Streams, "accept", lambda *_: 1 / 0)
                messages = await transcribe(client, samples)
                assert messages[-1]["type"] == "error"
                assert "failed; the log of the server" in messages[-1]["message"]
            assert texts(await transcribe(client, samples)) == text
            assert (await client.get("/health"))[0] == 200

    play(scenario())


def test_a_model_that_does_not_stream_says_so(whole):
    async def scenario() -> None:
        async with serving(whole) as client:
            async with client.connect() as socket:
                (error,) = await hear(socket)
                assert "does not stream" in error["message"]
                assert "not causal" in error["message"]
                assert "/v1/audio/transcriptions" in error["message"]
            async with client.connect("/") as socket:
                message = await socket.receive()
                assert message.data == 1008 and "does not stream" in message.extra

    play(scenario())


def test_at_the_end_open_audio_is_answered(live, toy_stream):
    _, text, samples = sounds(toy_stream)[0]

    async def scenario() -> None:
        async with serving(live) as client:
            socket = await client.connect()
            await socket.send_bytes((32768 * samples).astype("<i2").tobytes())
            while await client.metric('asrtool_audio_seconds_total{kind="stream"}') < 0.5:
                await asyncio.sleep(0.01)
            await client.service._drain(None)
            assert (await client.get("/health"))[0] == 503
            *_, final, end = await hear(socket)
            assert (final["text"], end["type"]) == (text, "end")
            async with client.connect() as late:
                (error,) = await hear(late)
                assert "shutting down" in error["message"]

    play(scenario())


def test_where_open_streams_are_late_no_more_are_taken(live):
    async def scenario() -> None:
        async with serving(live, Limits(late_seconds=5)) as client:
            client.service._tasks[1].cancel()
            batches = client.service.batches
            await batches.enter().put(np.zeros(1400, np.float32))
            batches.enter().close()  # a chunk that has just come is no reason
            batches._line = [(due - 7, *rest) for due, *rest in batches._line]
            async with client.connect() as other:
                (error,) = await hear(other)
                assert "are 7." in error["message"] and "seconds late" in error["message"]
                assert other.close_code == 1013
            batches._first()
            batches.enter()  # as soon as they are computed

    play(scenario())


def test_samples_are_scaled_and_checked_as_those_of_files():
    numbers = np.array([-32768, -1, 0, 1, 32767], "<i2")
    scaled = sockets.Sound("s16le", 8000, 8000)(numbers.tobytes())
    assert scaled.dtype == np.float32 and (scaled == audio.one_channel(numbers)).all()
    for loud in (0.5, 1.0, 1.5):
        samples = np.array([0.0, -loud], "<f4")
        assert (sockets.Sound("f32le", 8000, 8000)(samples.tobytes()) == samples).all()
    with pytest.raises(UserError, match="expected values in"):
        sockets.Sound("f32le", 8000, 8000)(np.array([0.0, -99.0], "<f4").tobytes())


def test_who_sends_faster_than_speech_gets_what_the_others_leave_over(live):
    """One that sends all of its audio at once, and one that begins to speak later."""

    async def scenario() -> None:
        async with serving(live, Limits(batch=1, queue_seconds=60)) as client:
            client.service._tasks[1].cancel()
            batches = client.service.batches
            fast, slow = batches.enter(), batches.enter()
            await fast.put(np.zeros(8000 * 10, np.float32))
            order = []
            for turn in range(6):
                if turn == 3:
                    await slow.put(np.zeros(2 * 1400, np.float32))
                (feed,) = batches._first()
                order.append("fast" if feed is fast else "slow")
                piece, _ = feed.take()
                together.hear([feed.row], [piece])
                feed.busy = False
                batches.offer(feed)
            # its second chunk came before it was due as well
            assert order == ["fast", "fast", "fast", "slow", "slow", "fast"]
            late = batches.enter()  # one whose chunks came while others were computed
            late._parts.extend((np.zeros(1300, np.float32), slow.due - 9 + n) for n in range(3))
            late._samples = 3 * 1300
            other = batches.enter()
            await other.put(np.zeros(1400, np.float32))
            batches.offer(late)
            for _ in range(2):
                (feed,) = batches._first()
                assert feed is late
                together.hear([feed.row], [feed.take()[0]])
                feed.busy = False
                batches.offer(feed)

    play(scenario())


def test_what_waits_is_bounded(live):
    """A sender whose audio is not computed is held back; unread partial results are replaced."""

    async def scenario() -> None:
        async with serving(live, Limits(queue_seconds=0.5, unread=3)) as client:
            client.service._tasks[1].cancel()  # nobody computes
            feed = client.service.batches.enter()
            await feed.put(np.zeros(4001, np.float32))
            putting = asyncio.create_task(feed.put(np.zeros(100, np.float32)))
            await asyncio.sleep(0.05)
            assert not putting.done()
            for _ in range(3):
                piece, _ = feed.take()
                assert len(piece.samples) == feed.row.missing or len(piece.samples) <= 1400
            await putting
            stream = Stream(live.live, ENDS)
            result = stream.accept(np.zeros(4000, np.float32))
            for _ in range(10):
                feed.tell(result)
            assert len(feed._results) == 1
            final = stream.accept(np.zeros(0, np.float32), final=True)
            for _ in range(3):
                feed.tell(final)
            assert len(feed._results) == 3 and not feed.ready
            await feed.get()
            feed.end()
            assert feed.in_line

    play(scenario())
