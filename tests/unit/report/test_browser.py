"""The page in headless Chromium, where there is one: what is drawn, sorted, filtered, played, by
keyboard too.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asrtool.bin import report
from tests import chromium, toy_result

pytestmark = pytest.mark.skipif(
    chromium.find() is None, reason="no Chromium here (Debian: apt install chromium)"
)

SHOWN = "Array.from(document.querySelectorAll('#list .row th'), (cell) => cell.innerText)"


@pytest.fixture(scope="module")
def tab():
    with chromium.Browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        folder = toy_result.make(root, 130, sounding=130)
        report.main([str(folder), "--worst", "3", "--audio", "embed"])
    return folder / "report.html"


def search(tab: chromium.Browser, query: str) -> str:
    tab.evaluate(f"document.getElementById('query').value = {query!r}")
    tab.evaluate("document.getElementById('filters').dispatchEvent(new Event('change'))")
    return tab.evaluate("document.getElementById('found').innerText")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_it_draws_without_complaint_and_asks_for_nothing(tab, page, scheme, width):
    tab.open(page, width, scheme=scheme)
    tab.evaluate("document.querySelector('.figure').scrollIntoView()")
    tab.wait("document.querySelector('.figure canvas').width > 300")
    for number in range(4):
        tab.evaluate(f"document.querySelectorAll('.plotarea')[{number}].scrollIntoView()")
        plot = f"document.querySelectorAll('.plotarea')[{number}]"
        tab.wait(f"{plot}.querySelectorAll('polyline').length >= 1")
    assert tab.complaints() == []
    assert tab.requests() == [page.as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
        "nothing sticks out sideways"
    )
    dark = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (int(re.search(r"\d+", dark)[0]) < 60) == (scheme == "dark")


def test_the_spectrogram_is_drawn_with_tokens_and_lanes(tab, page):
    tab.open(page)
    tab.evaluate("document.querySelector('.figure').scrollIntoView()")
    tab.wait("document.querySelector('.figure canvas').width > 300")
    shades = tab.evaluate(
        "(() => { const canvas = document.querySelector('.figure canvas'); return new Set("
        "canvas.getContext('2d').getImageData(0, 60, canvas.width, 100).data).size; })()"
    )
    assert shades > 30
    label = tab.evaluate("document.querySelector('.figure canvas').getAttribute('aria-label')")
    assert "key frames" in label and "gate" in label and "attention" in label


def test_the_list_is_sorted_and_paged(tab, page):
    tab.open(page)
    assert tab.evaluate("document.querySelectorAll('#list .row').length") == 50
    errors = [int(text) for text in tab.evaluate(SHOWN.replace("row th", "row .k-errors"))]
    assert errors == sorted(errors, reverse=True)
    tab.evaluate("document.querySelector('[data-page=last]').click()")
    assert tab.evaluate("document.querySelectorAll('#list .row').length") == 30
    tab.evaluate("document.querySelector('[data-key=id]').click()")
    names = tab.evaluate(SHOWN)
    assert names == sorted(names) and names[0] == "s000-00000"
    assert (
        tab.evaluate("document.querySelector('[data-key=id]').parentElement.ariaSort")
        == "ascending"
    )


def test_filters_find_words_and_errors(tab, page):
    tab.open(page)
    assert search(tab, "").startswith("130 of 130 utterances")
    assert search(tab, "S001-00").startswith("43 of 130")
    number = int(search(tab, "+um").split()[0])
    assert 0 < number < 130
    assert tab.evaluate(f"{SHOWN.replace('row th', 'row .I')}.includes('um')")
    assert search(tab, "harbour>never>never").startswith("0 of 130")
    tab.evaluate("document.querySelector('.edit[data-query]').click()")
    assert int(tab.evaluate("document.getElementById('found').innerText").split()[0]) >= 1
    tab.evaluate("document.querySelector('[data-group=accent]').click()")
    assert tab.evaluate("document.querySelector('[data-label=accent]').value") == "north"
    assert tab.evaluate("document.getElementById('found').innerText").startswith("65 of 130")


def test_by_keyboard_alone(tab, page):
    tab.open(page)
    tab.press("/", 191, "/")
    assert tab.evaluate("document.activeElement.id") == "query"
    tab.type("s002-00005")
    tab.wait("document.querySelectorAll('#list .row').length === 1")
    for _ in range(40):
        tab.press("Tab", 9)
        if tab.evaluate("document.activeElement.className") == "fold":
            break
    tab.press("Enter", 13, "\r")
    assert tab.evaluate("document.activeElement.ariaExpanded") == "true"
    assert tab.evaluate("!!document.querySelector('#list .below .alignment')")
    tab.evaluate("document.querySelector('.plotarea').scrollIntoView()")
    tab.wait("!!document.querySelector('.plotarea svg')")
    tab.evaluate("document.querySelector('.plotarea').focus()")
    tab.press("Home", 36)
    reading = tab.evaluate("document.querySelector('.reading').innerText")
    assert reading.startswith("step 20, epoch 1: loss")


def test_embedded_sound_plays(tab, page):
    tab.open(page)
    tab.evaluate("document.querySelector('.card audio').scrollIntoView()")
    seconds = tab.evaluate(
        "new Promise((done, fail) => { const audio = document.querySelector('.card audio'); "
        "audio.preload = 'auto'; "
        "audio.onloadedmetadata = () => done(audio.duration); audio.onerror = () => "
        "fail(audio.error.message); "
        "audio.load(); })"
    )
    assert seconds == pytest.approx(1.5, abs=0.01)


def test_everything_that_can_be_used_has_a_name(tab, page):
    """Of the accessibility tree that screen readers get."""
    tab.open(page)
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    used = {
        "button",
        "link",
        "textbox",
        "searchbox",
        "combobox",
        "Audio",
        "img",
        "table",
        "navigation",
    }
    seen = [
        (node["role"]["value"], node.get("name", {}).get("value"))
        for node in nodes
        if not node.get("ignored")
    ]
    assert len(seen) > 500
    assert [role for role, name in seen if role in used and not name] == []


def test_every_text_has_contrast(tab, page):
    """WCAG AA, 4.5 to 1, of each colour that the style uses for text, on each paper that it lies
    on.
    """
    for scheme in ("light", "dark"):
        tab.open(page, scheme=scheme)
        for ink, papers in {
            "text": ("bg", "panel"),
            "muted": ("bg", "panel"),
            "S": ("bg", "S-bg"),
            "D": ("bg", "D-bg"),
            "I": ("bg", "I-bg"),
        }.items():
            for paper in papers:
                assert contrast(tab, ink, paper) >= 4.5, (scheme, ink, paper)


def contrast(tab: chromium.Browser, *names: str) -> float:
    light = []
    for name in names:
        value = tab.evaluate(
            f"getComputedStyle(document.documentElement).getPropertyValue('--{name}')"
        )
        parts = [int(value.strip()[start : start + 2], 16) / 255 for start in (1, 3, 5)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        light.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(light) + 0.05) / (min(light) + 0.05)


@pytest.mark.slow
def test_ten_thousand_utterances_open_in_two_seconds(tab, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = toy_result.make(tmp_path, 10_000, speakers=40, sounding=30)
    report.main([str(folder), "--also", "s000-00000"])
    page = folder / "report.html"
    assert page.stat().st_size < 20e6
    # seconds of the page's thread, whoever else computes
    tab.call("Performance.enable", timeDomain="threadTicks")
    tab.open(page)
    metrics = {
        entry["name"]: entry["value"] for entry in tab.call("Performance.getMetrics")["metrics"]
    }
    elapsed = (
        tab.evaluate("performance.timing.loadEventEnd - performance.timing.navigationStart") / 1000
    )
    spent = metrics["TaskDuration"]
    print(
        f"{page.stat().st_size / 1e6:.1f} MB, {spent:.2f} CPU s of the page, {elapsed:.2f} s to "
        "load"
    )
    assert spent < 2.0
    assert search(tab, "um").startswith("10000 of 10000") is False
