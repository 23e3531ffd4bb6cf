"""Who may ask, and how long they may take for it."""

from __future__ import annotations

import asyncio
import json
import shutil
import ssl
import subprocess

import pytest
from aiohttp import ClientSession, TCPConnector, WSServerHandshakeError

from asrtool.bin import serve
from asrtool.errors import UserError
from asrtool.serve import Limits, guard, run
from asrtool.serve.app import Service
from tests.toy_service import hear, play, serving

TOKEN = "open-sesame"


def test_with_a_token_only_those_who_know_it_may_ask(live):
    async def scenario() -> None:
        async with serving(live, token=TOKEN) as client:
            for path in ("/", "/page/page.js", "/health"):
                assert (await client.get(path))[0] == 200
            for path in ("/v1/models", "/metrics", f"/v1/models?token={TOKEN}"):
                status, body = await client.get(path)
                assert status == 401 and "a token is missing" in body
            wrong = {"Authorization": "Bearer open"}
            status, body = await client.get("/v1/models", headers=wrong)
            assert status == 401 and "not the right one" in body
            right = {"Authorization": f"Bearer {TOKEN}"}
            assert (await client.get("/v1/models", headers=right))[0] == 200
            for path in ("/v1/stream", "/"):
                with pytest.raises(WSServerHandshakeError, match="401"):
                    await client.connect(path)
                async with client.connect(f"{path}?token={TOKEN}") as socket:
                    await socket.send_bytes(bytes(2))
            # who knows the token may come by any name, and from any page
            elsewhere = right | {"Host": "asr.example.org", "Origin": "https://example.org"}
            assert (await client.get("/v1/models", headers=elsewhere))[0] == 200

    play(scenario())


def test_without_one_pages_of_others_may_not_use_the_server(live):
    """A page of another origin, and a name of the web that points to this machine."""

    async def scenario() -> None:
        async with serving(live) as client:
            port = client.session._base_url.port
            for name in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", "localhost"):
                headers = {"Host": name, "Origin": f"http://{name}"}
                assert (await client.get("/v1/models", headers=headers))[0] == 200
            status, body = await client.get("/v1/models", headers={"Host": "evil.example"})
            assert status == 403 and "evil.example is no name of this machine" in body
            status, body = await client.get("/health", headers={"Origin": "https://evil.example"})
            assert status == 403 and "a page of https://evil.example" in body
            status, body = await client.get("/health", headers={"Host": "[::1"})
            assert status == 400 and "is no address" in body
            with pytest.raises(WSServerHandshakeError, match="403"):
                await client.connect(headers={"Origin": "http://localhost:1"})

    play(scenario())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is missing")
def test_https_and_wss(live, tmp_path):
    """With a certificate of its own making."""
    certificate, key = tmp_path / "c.pem", tmp_path / "k.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command += ["-out", certificate, "-keyout", key]
    subprocess.run(command, check=True, capture_output=True)
    options = ["model", "--certificate", str(certificate), "--key", str(key)]
    tls = serve.tls_of(serve.parse(options))

    async def scenario() -> None:
        trusted = TCPConnector(ssl=ssl.create_default_context(cafile=certificate))
        async with (
            run.running(Service(live, token=TOKEN), tls=tls) as address,
            ClientSession(address, connector=trusted) as session,
        ):
            assert address.startswith("https://127.0.0.1:")
            assert (await session.get("/health")).status == 200
            async with session.ws_connect(f"/v1/stream?token={TOKEN}") as socket:
                assert (await socket.receive_json())["type"] == "ready"
                await socket.send_str('{"type": "end"}')
                assert (await hear(socket))[-1]["type"] == "end"

    play(scenario())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org"])
def test_others_are_served_only_with_a_token(live, host):
    with pytest.raises(UserError, match="a token is needed: give --token"):
        play(run.serve(Service(live), host, 0))


def test_names_of_this_machine():
    assert all(map(guard.is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]")))
    assert not any(map(guard.is_loopback, ("localhost.example", "10.0.0.1", "", "0.0.0.0")))


def test_unknown_paths_and_methods_are_errors_in_json(live):
    async def scenario() -> None:
        async with serving(live) as client:
            status, body = await client.get("/v1/audio/transcriptions")
            assert status == 405 and "Method Not Allowed" in json.loads(body)["error"]["message"]
            status, body = await client.get("/nothing")
            assert status == 404 and json.loads(body)["error"]["type"] == "not_found_error"
            answered = 'asrtool_requests_total{route="other",status="404"}'
            assert await client.metric(answered) == 1

    play(scenario())


@pytest.mark.parametrize("sent", [b"\0\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_no_request_is_not_logged(live, sent, capsys, caplog):
    async def scenario() -> None:
        async with serving(live) as client:
            address = client.session._base_url
            reader, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(sent)
            assert b"400 Bad Request" in await reader.read()
            writer.close()

    play(scenario())
    logged = [record for record in caplog.records if "shutting down" not in record.getMessage()]
    assert not logged and not capsys.readouterr().err


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: 1"])
def test_a_connection_that_never_asks_is_closed(live, sent):
    """While one that talks for longer is not."""

    async def scenario() -> None:
        async with serving(live, Limits(head_seconds=0.4, idle_seconds=30)) as client:
            address = client.session._base_url
            async with client.connect() as socket:
                assert (await socket.receive_json())["type"] == "ready"
                reader, writer = await asyncio.open_connection(address.host, address.port)
                writer.write(sent)
                assert await reader.read() == b""
                writer.close()
                await socket.send_str('{"type": "end"}')
                assert (await hear(socket))[-1]["type"] == "end"

    play(scenario())
