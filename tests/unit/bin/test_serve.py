"""`asrtool serve`: from its options to the last answer."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.request
from importlib.util import find_spec

import pytest

from asrtool.bin import serve
from asrtool.errors import UserError
from asrtool.serve import Limits

needs_extra = pytest.mark.skipif(
    find_spec("aiohttp") is None or find_spec("prometheus_client") is None,
    reason="aiohttp or prometheus_client is missing: pip install -e '.[serve]'",
)


@needs_extra
def test_the_command_serves_until_it_is_told_to_end(toy_stream):
    command = [sys.executable, "-m", "asrtool", "serve", toy_stream / "exp", "--port", "0"]
    command += ["--chunk-ms", "160", "--name", "tones"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        said = ""
        for line in process.stderr:
            said += line
            if found := re.search(r"tones: streams and files at (http://127\.0\.0\.1:\d+)", line):
                break
        else:
            pytest.fail(said)
        with urllib.request.urlopen(f"{found[1]}/v1/models") as answer:
            (model,) = json.load(answer)["data"]
        process.send_signal(signal.SIGTERM)
        said += process.stderr.read()
        assert process.wait(30) == 0
    assert (model["id"], model["stream"]) == ("tones", True)
    assert "shutting down" in said and "Traceback" not in said
    assert "a frame sees" not in said  # training limited it


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs aiohttp and prometheus_client.*'\.\[serve\]'"):
        serve.main([str(tmp_path)])


@needs_extra
def test_others_are_served_only_with_a_token(tmp_path):
    with pytest.raises(UserError, match="a token is needed"):
        serve.main([str(tmp_path), "--host", "0.0.0.0", "--port", "0"])


@needs_extra
def test_a_port_that_is_taken_is_named_before_the_model_is_loaded(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(UserError, match=f"127.0.0.1:{port}: Address already in use"):
            serve.main([str(tmp_path), "--port", port])


def test_the_token_comes_from_a_file_the_environment_or_the_command_line(tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("from-file\n")
    monkeypatch.setenv("ASRTOOL_TOKEN", "from-environment")

    def token(*options: str) -> str | None:
        return serve.token_of(serve.parse(["model", *options]))

    assert token() == "from-environment"
    assert token("--token", "given") == "given"
    assert token("--token-file", str(file)) == "from-file"
    file.write_text("")
    with pytest.raises(UserError, match="expected a token of visible ASCII"):
        token("--token-file", str(file))
    monkeypatch.delenv("ASRTOOL_TOKEN")
    assert token() is None


def test_every_limit_has_an_option():
    assert {name.replace("-", "_") for name in serve.LIMITS} == set(serve._fields())
    args = serve.parse(["model", "--files", "3", "--idle-seconds", "2.5"])
    assert (args.files, args.idle_seconds, args.batch) == (3, 2.5, Limits.batch)
    with pytest.raises(ValueError, match="files is 0, expected above 0"):
        Limits(files=0)


@needs_extra
def test_https_needs_a_certificate_that_is_one(tmp_path):
    (tmp_path / "c.pem").write_text("no certificate")
    options = ["--certificate", str(tmp_path / "c.pem"), "--key", str(tmp_path / "c.pem")]
    with pytest.raises(UserError, match="no certificate with its key"):
        serve.tls_of(serve.parse(["model", *options]))
    with pytest.raises(SystemExit):
        serve.parse(["model", "--certificate", "c.pem"])


def test_the_process_may_open_as_many_sockets_as_connections(monkeypatch, caplog):
    import resource

    limits, told = (400, 1000), []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, value: told.append(value))
    crowd = Limits(connections=500)
    serve.allow_files(crowd)
    serve.allow_files(Limits(connections=10))
    assert told == [(crowd.sockets + Limits.files + serve.FILES, 1000)]
    assert crowd.sockets > 500 + Limits.files  # those that are refused need one too
    with caplog.at_level("WARNING"):
        serve.allow_files(Limits(connections=5000))
    assert told[-1] == (1000, 1000) and "too few for --connections 5000" in caplog.text
