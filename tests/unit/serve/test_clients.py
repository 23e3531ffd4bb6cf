"""Clients that others wrote: OpenAI's, sherpa-onnx's, websockets and curl."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import soundfile

from tests.toy_service import in_thread, sounds, texts

pytestmark = pytest.mark.interop
TOKEN = "open-sesame"


@pytest.fixture(scope="module")
def address(live):
    with in_thread(live) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(live):
    """The same, with a token."""
    with in_thread(live, TOKEN) as found:
        yield found


def test_openais_client(guarded, toy_stream):
    openai = pytest.importorskip("openai", reason="openai is missing: pip install -e '.[interop]'")
    path, text, _ = sounds(toy_stream)[1]
    client = openai.OpenAI(base_url=f"{guarded}/v1", api_key=TOKEN, max_retries=0)
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("toy").owned_by == "asrtool"

    def create(**options):
        with open(path, "rb") as file:
            return client.audio.transcriptions.create(model="toy", file=file, **options)

    assert create().text == text
    assert create(response_format="text").strip() == text
    assert create(response_format="srt").startswith("1\n00:00:0")
    assert create(response_format="vtt").startswith("WEBVTT")
    both = ["word", "segment"]
    verbose = create(response_format="verbose_json", timestamp_granularities=both)
    assert [word.word for word in verbose.words] == text.split()
    assert verbose.words[-1].end <= float(verbose.duration)
    assert " ".join(segment.text for segment in verbose.segments) == text
    with pytest.raises(openai.BadRequestError, match="takes no prompt"):
        create(prompt="names")
    with pytest.raises(openai.NotFoundError, match="it is called 'toy'"):
        client.audio.transcriptions.create(model="whisper-1", file=path)
    other = openai.OpenAI(base_url=f"{guarded}/v1", api_key="other", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="not the right one"):
        other.models.list()


def test_sherpa_onnxs_websocket_client(address, toy_stream, tmp_path):
    """The program of its wheel, which knows no path but / and no token."""
    program = shutil.which("sherpa-onnx-online-websocket-client")
    if program is None:
        pytest.skip("sherpa-onnx-bin is missing: pip install -e '.[interop]'")
    _, text, samples = sounds(toy_stream)[1]
    soundfile.write(tmp_path / "a.wav", samples, 8000, subtype="PCM_16")
    host, _, port = address.removeprefix("http://").partition(":")
    command = [program, f"--server-ip={host}", f"--server-port={port}", "--sample-rate=8000"]
    command += ["--samples-per-message=800", "--seconds-per-message=0.02", tmp_path / "a.wav"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "error while loading shared libraries" in done.stderr:
        pytest.skip(f"sherpa-onnx-bin finds no sherpa-onnx: {done.stderr.strip()}")
    lines = (done.stdout + done.stderr).splitlines()
    results = [json.loads(line[line.index("{") :]) for line in lines if '"is_final"' in line]
    assert done.returncode == 0 and "Done!" in lines[-1]
    assert results[-1]["text"] == text and results[-1]["is_final"] and len(results) > 3


def test_the_client_of_the_websockets_package(guarded, toy_stream):
    client = pytest.importorskip(
        "websockets.sync.client", reason="websockets is missing: pip install -e '.[interop]'"
    )
    _, text, samples = sounds(toy_stream)[1]
    url = guarded.replace("http", "ws") + "/v1/stream"
    with client.connect(url, additional_headers={"Authorization": f"Bearer {TOKEN}"}) as socket:
        assert json.loads(socket.recv())["type"] == "ready"
        socket.send(json.dumps({"type": "start", "format": "f32le"}))
        socket.send(samples.astype("<f4").tobytes())
        socket.send(json.dumps({"type": "end"}))
        assert texts([json.loads(message) for message in socket]) == text


def test_curl(guarded, toy_stream):
    if shutil.which("curl") is None:
        pytest.skip("curl is missing")
    path, text, _ = sounds(toy_stream)[1]

    def curl(*options: object) -> str:
        command = ["curl", "--silent", "--show-error", *map(str, options)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    url, known = f"{guarded}/v1/audio/transcriptions", f"Authorization: Bearer {TOKEN}"
    form = ("-F", f"file=@{path}", "-F", "model=toy", "-F", "response_format=text")
    assert curl("-H", known, *form, url) == text + "\n"
    assert "a token is missing" in curl(*form, url)
    assert json.loads(curl(f"{guarded}/health"))["status"] == "ok"
    assert "asrtool_requests_total" in curl("-H", known, f"{guarded}/metrics")
