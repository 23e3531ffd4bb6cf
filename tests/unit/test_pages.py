"""The pages of a server and without one are complete in themselves, and say what they hold to those
who do not see it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from asrtool import page

PAGES = {name: page.files(f"asrtool.{name}") for name in ("serve", "export")}
STYLES = PAGES["serve"]["page.css"]  # the same for all


@pytest.fixture(params=PAGES)
def files(request) -> dict[str, str]:
    return PAGES[request.param]


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found.append((tag, dict(attributes)))


def test_nothing_is_asked_of_another_host(files):
    for name, text in files.items():
        without_comments = re.sub(r"https://( or|\.)", "", text)
        assert not re.search(r"(https?:)?//[\w.-]+\.\w", without_comments), name


def test_what_the_scripts_name_is_there(files):
    elements = Elements(files["index.html"]).found
    ids = {attributes["id"] for _, attributes in elements if "id" in attributes}
    named = set(re.findall(r'by\("([\w-]+)"\)', files["page.js"] + files["view.js"]))
    assert named and named <= ids
    names = set(re.findall(r'"(?:\./|page/)?([\w-]+\.(?:js|css))"', "".join(files.values())))
    assert names == set(files) - {"index.html"}
    colours = set(re.findall(r"var\((--[\w-]+)\)", files["page.css"]))
    assert colours <= set(re.findall(r"(--[\w-]+):", files["page.css"]))


def test_what_a_script_imports_is_exported(files):
    for name, text in files.items():
        for wanted, other in re.findall(r"import \{ (.*?) \} from \"./(.*?)\"", text):
            given = set(
                re.findall(r"export (?:async )?(?:class|const|function) (\w+)", files[other])
            )
            assert set(wanted.split(", ")) <= given, f"{name}: {other}"


@pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js on this machine")
def test_every_script_is_javascript(files, tmp_path):
    for name in files:
        if name.endswith(".js"):
            (tmp_path / name).write_text(files[name], encoding="utf-8")
    script = """
    const [fs, vm] = [require("node:fs"), require("node:vm")];
    for (const name of fs.readdirSync(".")) new vm.SourceTextModule(fs.readFileSync(name, "utf8"));
    """
    done = subprocess.run(
        ["node", "--experimental-vm-modules", "-"],
        input=script,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_landmarks_headings_and_live_regions(files):
    elements = Elements(files["index.html"]).found
    tags = [tag for tag, _ in elements]
    assert [tags.count(tag) for tag in ("main", "header", "h1", "noscript")] == [1, 1, 1, 1]
    assert ("html", {"lang": "en"}) in elements
    by_id = {attributes.get("id"): attributes for _, attributes in elements}
    assert by_id["announce"]["aria-live"] == "polite" and by_id["status"]["role"] == "status"
    assert by_id["problem"]["role"] == "alert" and by_id["record"]["type"] == "button"
    labelled = {attributes["for"] for tag, attributes in elements if attributes.get("for")}
    # the input of files is within its label
    assert labelled == {name for name in ("token", "loading") if name in by_id} != set()
    sections = [attributes for tag, attributes in elements if tag == "section"]
    assert all(section["aria-labelledby"] in by_id for section in sections)


def test_dark_has_every_colour_that_light_has():
    light, dark = re.findall(r":root \{(.*?)\}", STYLES, re.DOTALL)
    names = [set(re.findall(r"(--[\w-]+):", part)) for part in (light, dark)]
    assert names[0] == names[1]


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, of two colours #rrggbb."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    brighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def test_text_and_edges_have_contrast():
    for part in re.findall(r":root \{(.*?)\}", STYLES, re.DOTALL):
        colour = dict(re.findall(r"(--[\w-]+): (#\w{6})", part))
        for text in ("--text", "--muted", "--live"):
            for ground in ("--bg", "--panel"):
                assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
        assert contrast(colour["--on-accent"], colour["--accent"]) >= 4.5
        for edge in ("--edge", "--focus", "--warn", "--accent"):
            assert contrast(colour[edge], colour["--bg"]) >= 3, edge
