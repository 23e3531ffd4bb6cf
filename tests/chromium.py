"""A headless Chromium that tests drive by its DevTools protocol over two pipes; no library, no
port, no network.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.shared import once

AXE = "axe-core@4.14.1"
VIOLATIONS = """
axe.run(document, {resultTypes: ["violations"]}).then(({violations}) => violations.map(
  ({id, nodes}) => id + ": " + nodes.map(({html}) => html).join(" "))).then(JSON.stringify)
"""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find() -> str | None:
    """The browser on this machine, if there is one; CHROMIUM names another."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def microphone(file: Path) -> list[str]:
    """Options of a browser whose microphone plays a file once."""
    fake = ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    return [*fake, f"--use-file-for-fake-audio-capture={file}%noloop"]


def axe_core(request: pytest.FixtureRequest) -> str:
    """The script that looks for what is not accessible, from npm; skips where there is no npm."""
    if shutil.which("npm") is None:
        pytest.skip("npm is missing, which brings axe-core")

    def install(folder: Path) -> None:
        command = ["npm", "install", "--no-save", "--prefix", folder, AXE]
        subprocess.run(command, check=True, capture_output=True, timeout=300)

    folder = once(request, "axe", install)
    return (folder / "node_modules/axe-core/axe.min.js").read_text(encoding="utf-8")


class Browser:
    """One tab. `with Browser() as tab: tab.open(path); tab.evaluate("document.title")`."""

    def __init__(self, executable: str | None = None, options: Sequence[str] = ()) -> None:
        self._profile = tempfile.mkdtemp(prefix="asrtool-chromium-")
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()
        command = [
            executable or find(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--autoplay-policy=no-user-gesture-required",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._profile}",
            *options,
            "about:blank",
        ]
        shuffle = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", shuffle, "chromium", *command],
            pass_fds=(to_browser, from_browser),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer, self._number, self._session = b"", 0, None
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._out)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        os.close(self._in)
        shutil.rmtree(self._profile, ignore_errors=True)

    def call(self, method: str, **parameters: object) -> dict:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict:
        while b"\0" not in self._buffer:
            part = os.read(self._in, 1 << 20)
            if not part:
                raise RuntimeError("the browser ended")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    # -- what a person does ----------------------------------------------------

    def open(
        self, path: Path | str, width: int = 1280, height: int = 900, scheme: str = "light"
    ) -> float:
        """Load a file, or an address; seconds until it is loaded and drawn."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )
        self.events.clear()
        began = time.monotonic()
        self.call("Page.navigate", url=path if isinstance(path, str) else path.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        self.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
        return time.monotonic() - began

    def evaluate(self, script: str) -> object:
        """The value of an expression; promises are awaited; an exception is an error here."""
        answer = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def press(self, key: str, code: int = 0, text: str = "") -> None:
        common = {"key": key, "windowsVirtualKeyCode": code, "code": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def choose(self, selector: str, file: Path) -> None:
        """Give a file to an input."""
        script = f"document.querySelector({json.dumps(selector)})"
        found = self.call("Runtime.evaluate", expression=script)["result"]["objectId"]
        self.call("DOM.setFileInputFiles", files=[str(file)], objectId=found)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def wait(self, script: str, seconds: float = 120.0) -> object:
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            assert time.monotonic() < end, f"never true: {script}"
            time.sleep(0.05)
        return value

    def violations(self, axe: str) -> list[str]:
        """What the script of `axe_core` complains of."""
        self.evaluate(axe + ";0")
        return json.loads(self.evaluate(VIOLATIONS))

    def complaints(self) -> list[str]:
        """Errors of scripts, of the content security policy, of loading."""
        return [
            json.dumps(event["params"])[:500]
            for event in self.events
            if event.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded")
        ]

    def requests(self) -> list[str]:
        """Addresses that the page asked for, without embedded data."""
        asked = (
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        )
        return [url for url in asked if not url.startswith("data:")]

    def screenshot(self, path: Path, whole: bool = False) -> None:
        image = self.call(
            "Page.captureScreenshot", captureBeyondViewport=whole, **(self._clip() if whole else {})
        )
        path.write_bytes(base64.b64decode(image["data"]))

    def picture(self, name: str) -> None:
        """A screenshot in the folder ASRTOOL_SCREENSHOTS, if that is set."""
        if folder := os.environ.get("ASRTOOL_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.screenshot(Path(folder) / f"{name}.png", whole=True)

    def _clip(self) -> dict:
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        return {
            "clip": {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        }
