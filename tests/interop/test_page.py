"""The page without a server, delivered by Python's server of files to a headless Chromium: texts
are those of `asrtool recognize`. ASRTOOL_SCREENSHOTS names a folder that gets pictures.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.bin import export, recognize
from tests import chromium, toy_experiment
from tests.interop import node
from tests.shared import once

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        chromium.find() is None, reason="no Chromium here (Debian: apt install chromium)"
    ),
]
SAID = "abc de bad cab"
SECONDS = 0.5  # of silence around it
READY = "document.readyState == 'complete' && !document.querySelector('#file').disabled"
TEXTS = "JSON.stringify([...document.querySelectorAll('.said')].map((line) => line.textContent))"


@pytest.fixture(scope="module")
def folder(toy, request) -> Path:
    """The page of the toy."""
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="pip install -e '.[onnx]'")

    def make(root: Path) -> None:
        packages = node.install(root / "npm", "onnxruntime-web")
        options = ["--for", "web", "--ort", str(packages / "onnxruntime-web" / "dist")]
        export.main([str(toy / "exp"), *options, "--out", str(root / "page")])

    return once(request, "page", make) / "page"


@contextmanager
def delivered(folder: Path) -> Iterator[str]:
    """The address of a server of files, which sends no header of its own."""
    command = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    server = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().split(' port ')[1].split()[0]}"
    finally:
        server.terminate()
        server.wait()
        server.stdout.close()


@pytest.fixture(scope="module")
def address(folder) -> Iterator[str]:
    with delivered(folder) as found:
        yield found


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """What the microphone plays."""
    path = tmp_path_factory.mktemp("sound") / "said.wav"
    rate = toy_experiment.RATE
    pause = toy_experiment.quiet(SECONDS)
    soundfile.write(path, np.concatenate([pause, toy_experiment.sound(SAID), pause]), rate)
    return path


@pytest.fixture(scope="module")
def tab(sound) -> Iterator[chromium.Browser]:
    with chromium.Browser(options=chromium.microphone(sound)) as browser:
        yield browser


@pytest.fixture(scope="module")
def axe(request) -> str:
    return chromium.axe_core(request)


def texts(tab: chromium.Browser) -> list[str]:
    return json.loads(tab.evaluate(TEXTS))


def content(tab: chromium.Browser, name: str) -> str:
    return tab.evaluate(f"document.querySelector('#{name}').textContent")


def recognised(toy: Path, files: list[Path], capsys: pytest.CaptureFixture) -> list[str]:
    """By the command."""
    capsys.readouterr()
    recognize.main([str(toy / "exp"), "--config", str(toy / "decode.yaml"), *map(str, files)])
    return [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()]


def test_files_have_the_texts_of_recognize(tab, address, axe, toy, capsys):
    files = sorted((toy / "data" / "test" / "audio").glob("*.wav"))
    expected = recognised(toy, files, capsys)
    tab.open(address + "/", scheme="dark", width=390)
    tab.wait(READY)
    for number, file in enumerate(files, 1):
        tab.choose("#file", file)
        tab.wait(f"document.querySelectorAll('.said').length == {number}")
        tab.wait(READY)
    assert texts(tab) == expected and len(set(expected)) > 10
    assert content(tab, "announce") == expected[-1]
    assert not tab.evaluate("document.querySelector('#player').hidden")
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert tab.violations(axe) == []
    tab.picture("alone-file-dark")
    assert not tab.complaints()
    assert all(url.startswith((address, "blob:")) for url in tab.requests())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_microphone_by_keys_alone(tab, address, axe, sound, scheme):
    tab.open(address + "/", scheme=scheme)
    assert tab.violations(axe) == []
    tab.wait(READY)
    assert tab.evaluate("document.querySelector('#load').hidden")
    loaded, total = content(tab, "loaded").removesuffix(" MB").split(" of ")
    assert loaded == total and float(total) > 1
    assert "8 kHz" in content(tab, "facts") and content(tab, "status") == "Ready"
    assert tab.violations(axe) == []
    tab.picture(f"alone-ready-{scheme}")
    for _ in range(2):  # the link that skips, the microphone
        tab.press("Tab", 9)
    assert tab.evaluate("document.activeElement.id") == "record"
    tab.press(" ", 32, " ")
    tab.wait("document.querySelector('#record').innerText == 'Stop'")
    time.sleep(soundfile.info(sound).duration)
    tab.picture(f"alone-listening-{scheme}")
    tab.press(" ", 32, " ")
    tab.wait(READY)
    assert tab.evaluate("document.activeElement.id") == "record"
    assert texts(tab) == [SAID] and content(tab, "announce") == SAID
    assert content(tab, "status").endswith(" heard")
    assert tab.violations(axe) == []
    tab.picture(f"alone-heard-{scheme}")
    assert not tab.complaints()


def test_a_recording_of_another_rate_is_resampled(tab, address):
    """As that of a browser that does not resample the microphone."""
    tab.open(address + "/")
    found = tab.evaluate(
        """(async () => {
        const {resampled} = await import("./page/audio.js");
        const tone = (at) => 0.5 * Math.sin(2 * Math.PI * 440 * at / 48000);
        const pieces = [0, 1].map(
          (n) => Float32Array.from({length: 2400}, (_, at) => tone(2400 * n + at)));
        const empty = await resampled([], 48000, 8000);
        const same = await resampled(pieces, 8000, 8000);
        return [empty.length, same.length, ...await resampled(pieces, 48000, 8000)];
        })()"""
    )
    assert found[:2] == [0, 4800] and len(found) == 2 + 800
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(800) / 8000)
    assert np.abs(found[2:] - expected)[50:-50].max() < 0.01


def test_what_cannot_be_decoded_is_said(tab, address, axe, tmp_path):
    tab.open(address + "/")
    tab.wait(READY)
    (tmp_path / "letter.wav").write_text("Dear Sirs")
    tab.choose("#file", tmp_path / "letter.wav")
    tab.wait("!document.querySelector('#problem').hidden")
    assert content(tab, "problem").startswith("letter.wav: this browser finds no sound in it")
    assert tab.violations(axe) == [] and texts(tab) == []
    tab.wait(READY)


def test_after_a_failure_of_the_graph_the_next_file_is_recognised(tab, address, toy):
    tab.open(address + "/")
    tab.wait(READY)
    tab.evaluate(
        """(() => { const send = Worker.prototype.postMessage;
        Worker.prototype.postMessage = function () {
          Worker.prototype.postMessage = send;
          send.call(this, {samples: "no numbers"});
        }; })()"""
    )
    file = toy / "data" / "test" / "audio" / "u000.wav"
    tab.choose("#file", file)
    tab.wait("!document.querySelector('#problem').hidden")
    assert "Try a shorter one" in content(tab, "problem") and texts(tab) == []
    tab.wait(READY)
    tab.choose("#file", file)
    tab.wait("document.querySelectorAll('.said').length == 1")


def test_a_file_that_is_missing_or_another_is_said(tab, folder, axe, tmp_path):
    shutil.copytree(folder, tmp_path / "page")
    graph = tmp_path / "page" / "model.onnx"
    whole, made = graph.read_bytes(), graph.stat().st_mtime
    with delivered(tmp_path / "page") as address:
        for number, (found, what) in enumerate(
            (
                (whole[:-1], f"it has {len(whole) - 1} of {len(whole)} bytes."),
                (whole + b"more", "it is longer."),
                (None, "the server answered 404."),
            )
        ):
            graph.unlink()
            if found is not None:
                graph.write_bytes(found)
                os.utime(graph, 2 * (made + 2 * number,))  # servers count seconds
            tab.open(address + "/", scheme="dark")
            tab.wait("!document.querySelector('#problem').hidden")
            assert "The model cannot be loaded: model.onnx" in content(tab, "problem")
            assert what in content(tab, "problem")
            assert tab.evaluate("document.querySelector('#load').hidden")
        assert tab.violations(axe) == []
        tab.picture("alone-missing-dark")
