"""The page in a headless Chromium: a fake microphone that plays a file, a file, keys alone.

axe-core finds nothing to complain of. ASRTOOL_SCREENSHOTS names a folder that gets pictures.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.streaming import EndConfig
from tests import chromium
from tests.toy_experiment import quiet
from tests.toy_service import in_thread, sounds

TOKEN = "open-sesame"
pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        chromium.find() is None, reason="no Chromium here (Debian: apt install chromium)"
    ),
]
HEARD = "document.querySelectorAll('.said').length"


@pytest.fixture(scope="module")
def sound(toy_stream, tmp_path_factory) -> tuple[Path, str]:
    """A file for the microphone, two texts with a pause behind each, and what is said."""
    (_, first, one), (_, second, other) = sounds(toy_stream)[1:4:2]
    pause = quiet(2.0)
    path = tmp_path_factory.mktemp("sound") / "said.wav"
    soundfile.write(path, np.concatenate([pause, one, pause, other, quiet(8.0)]), 8000)
    return path, [first, second]


@pytest.fixture(scope="module")
def tab(sound) -> Iterator[chromium.Browser]:
    with chromium.Browser(options=chromium.microphone(sound[0])) as browser:
        yield browser


@pytest.fixture(scope="module")
def axe(request) -> str:
    return chromium.axe_core(request)


@pytest.fixture(scope="module")
def address(live):
    with in_thread(live, ends=EndConfig(pause=1.5)) as found:
        yield found


def open_page(tab: chromium.Browser, address: str, **options: object) -> None:
    tab.open(address + "/", **options)
    tab.wait("document.readyState == 'complete' && !document.querySelector('#file').disabled")


def shades(tab: chromium.Browser) -> int:
    """How many colours the picture has."""
    return tab.evaluate(
        """(() => { const canvas = document.querySelector("#spectrogram");
        const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size; })()"""
    )


def texts(tab: chromium.Browser) -> list[str]:
    return json.loads(
        tab.evaluate(
            "JSON.stringify([...document.querySelectorAll('.said')].map(x => x.innerText))"
        )
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_microphone_is_heard_while_it_speaks(tab, address, axe, sound, scheme):
    """By keys alone: Tab to the button, Space to begin and to end."""
    open_page(tab, address, scheme=scheme)
    assert tab.violations(axe) == []
    tab.picture(f"idle-{scheme}")
    for _ in range(2):  # the link that skips, the microphone
        tab.press("Tab", 9)
    assert tab.evaluate("document.activeElement.id") == "record"
    tab.press(" ", 32, " ")
    tab.wait("document.querySelector('#record').innerText == 'Stop'")
    assert tab.evaluate("document.activeElement.id") == "record"
    tab.wait("document.querySelector('#partial').textContent.length > 3")
    assert tab.evaluate(HEARD) == 0  # a partial text, live
    assert "Listening" in tab.evaluate("document.querySelector('#status').textContent")
    tab.picture(f"listening-{scheme}")
    tab.wait(f"{HEARD} == 2")
    assert tab.evaluate("document.querySelector('#announce').textContent") == sound[1][1]
    assert tab.violations(axe) == []
    assert shades(tab) > 50
    tab.press(" ", 32, " ")
    tab.wait("!document.querySelector('#file').disabled")
    assert tab.evaluate("document.activeElement.id") == "record"
    assert texts(tab) == sound[1]
    about = tab.evaluate("document.querySelector('.about').textContent")
    assert "confidence" in about and "accent low" in about
    tab.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    words = tab.evaluate("document.querySelector('li table:last-of-type').innerText")
    assert "Confidence" in tab.evaluate("document.querySelector('#texts').innerText") and words
    assert tab.violations(axe) == []
    tab.picture(f"heard-{scheme}")
    assert not tab.complaints()
    assert all(url.startswith((address, address.replace("http", "ws"))) for url in tab.requests())


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_a_file_is_recognised_drawn_and_played(tab, address, axe, sound, scheme, width):
    open_page(tab, address, scheme=scheme, width=width)
    tab.choose("#file", sound[0])
    tab.wait(f"{HEARD} == 1")
    assert texts(tab) == [" ".join(sound[1])]
    assert shades(tab) > 50
    assert not tab.evaluate("document.querySelector('#player').hidden")
    words = tab.evaluate("document.querySelectorAll('button.word').length")
    assert words == len(" ".join(sound[1]).split())
    tab.evaluate("document.querySelector('.said .word:last-child').click()")
    tab.wait("document.querySelector('#player').currentTime > 4")
    tab.wait("document.querySelector('.word.now') !== null")
    tab.evaluate("document.querySelector('details').open = true")
    assert tab.violations(axe) == []
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    tab.picture(f"file-{scheme}-{width}")
    tab.evaluate("document.querySelector('#clear').click()")
    assert texts(tab) == [] and not tab.complaints()


def test_a_file_that_is_none_has_the_servers_sentence(tab, address, axe, tmp_path):
    open_page(tab, address)
    path = tmp_path / "letter.wav"
    path.write_text("Dear Sirs")
    tab.choose("#file", path)
    tab.wait("!document.querySelector('#problem').hidden")
    assert "letter.wav" in tab.evaluate("document.querySelector('#problem').textContent")
    assert tab.violations(axe) == []
    tab.picture("problem")


def test_a_token_is_asked_for(tab, live, axe):
    with in_thread(live, TOKEN) as address:
        tab.open(address + "/", scheme="dark")
        tab.wait("!document.querySelector('#gate').hidden")
        assert tab.evaluate("document.activeElement.id") == "token"
        assert tab.violations(axe) == []
        tab.picture("token")
        tab.type("wrong")
        tab.press("Enter", 13, "\r")
        tab.wait("document.querySelector('#problem').textContent.includes('not the right one')")
        tab.evaluate("document.querySelector('#token').value = ''")
        tab.type(TOKEN)
        tab.press("Enter", 13, "\r")
        tab.wait("!document.querySelector('#file').disabled")
        assert tab.evaluate("document.querySelector('#gate').hidden")
        tab.evaluate("document.querySelector('#record').click()")
        tab.wait("document.querySelector('#partial').textContent.length > 3")
        tab.evaluate("document.querySelector('#record').click()")
        tab.wait("!document.querySelector('#file').disabled")
        tab.evaluate("sessionStorage.clear()")


def test_a_model_that_does_not_stream_hears_the_microphone_at_its_end(tab, whole, axe):
    with in_thread(whole) as address:
        open_page(tab, address)
        assert "does not stream" in tab.evaluate("document.querySelector('#facts').textContent")
        tab.evaluate("document.querySelector('#record').click()")
        tab.wait("document.querySelector('#record').innerText == 'Stop'")
        time.sleep(6)  # of the file
        tab.evaluate("document.querySelector('#record').click()")
        tab.wait("!document.querySelector('#file').disabled")
        assert tab.evaluate(HEARD) == 1 and tab.violations(axe) == []
