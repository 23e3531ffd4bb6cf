"""The page is complete in itself, and says what it holds to those who do not see it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from importlib import resources

from tests.toy_service import play, serving

FILES = {
    file.name: file.read_text(encoding="utf-8")
    for file in resources.files("asrtool.serve").joinpath("page").iterdir()
}


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(FILES["index.html"])

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self.found.append((tag, dict(attributes)))


def test_every_file_is_served_under_a_policy_without_other_hosts(live):
    async def scenario() -> None:
        async with serving(live) as client:
            for name, text in FILES.items():
                path = "/" if name == "index.html" else f"/page/{name}"
                async with client.session.get(path) as answer:
                    assert await answer.text() == text
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                    policy = answer.headers["Content-Security-Policy"]
                    assert policy.startswith("default-src 'none'; script-src 'self'")
                    assert "http" not in policy and "unsafe" not in policy

    play(scenario())


def test_nothing_is_asked_of_another_host():
    for name, text in FILES.items():
        without_comments = re.sub(r"https://( or|\.)", "", text)
        assert not re.search(r"(https?:)?//[\w.-]+\.\w", without_comments), name


def test_what_the_scripts_name_is_there():
    ids = {attributes["id"] for _, attributes in Elements().found if "id" in attributes}
    named = set(re.findall(r'by\("([\w-]+)"\)', FILES["page.js"]))
    assert named and named <= ids
    files = set(re.findall(r'"(?:\./|page/)?([\w-]+\.(?:js|css))"', "".join(FILES.values())))
    assert files == set(FILES) - {"index.html"}
    colours = set(re.findall(r"var\((--[\w-]+)\)", FILES["page.css"]))
    assert colours <= set(re.findall(r"(--[\w-]+):", FILES["page.css"]))


def test_landmarks_headings_and_live_regions():
    elements = Elements().found
    tags = [tag for tag, _ in elements]
    assert [tags.count(tag) for tag in ("main", "header", "h1", "noscript")] == [1, 1, 1, 1]
    assert ("html", {"lang": "en"}) in elements
    by_id = {attributes.get("id"): attributes for _, attributes in elements}
    assert by_id["announce"]["aria-live"] == "polite" and by_id["status"]["role"] == "status"
    assert by_id["problem"]["role"] == "alert" and by_id["record"]["type"] == "button"
    labelled = {attributes["for"] for tag, attributes in elements if attributes.get("for")}
    assert labelled == {"token"}  # the other input is within its label
    sections = [attributes for tag, attributes in elements if tag == "section"]
    assert all(section["aria-labelledby"] in by_id for section in sections)


def test_dark_has_every_colour_that_light_has():
    light, dark = re.findall(r":root \{(.*?)\}", FILES["page.css"], re.DOTALL)
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
    for part in re.findall(r":root \{(.*?)\}", FILES["page.css"], re.DOTALL):
        colour = dict(re.findall(r"(--[\w-]+): (#\w{6})", part))
        for text in ("--text", "--muted", "--live"):
            for ground in ("--bg", "--panel"):
                assert contrast(colour[text], colour[ground]) >= 4.5, (text, ground)
        assert contrast(colour["--on-accent"], colour["--accent"]) >= 4.5
        for edge in ("--edge", "--focus", "--warn", "--accent"):
            assert contrast(colour[edge], colour["--bg"]) >= 3, edge
