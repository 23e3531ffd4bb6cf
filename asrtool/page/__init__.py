"""What the page of a server and the page without one share: microphone, picture of the sound,
texts, styles.
"""

from __future__ import annotations

from importlib import resources
from string import Template

# of index.html that each page has for itself: what its head adds, what comes before the sound, and
# what stands in place of the first text
PARTS = ("head", "start", "empty")


def files(package: str) -> dict[str, str]:
    """Name -> text of a page: the files here, and those in the folder `page` of a package, which
    has the PARTS of index.html.
    """
    folders = (resources.files(__package__), resources.files(package).joinpath("page"))
    found = {
        file.name: file.read_text(encoding="utf-8")
        for folder in folders
        for file in folder.iterdir()
        if file.name.endswith((".css", ".html", ".js"))
    }
    parts = {part: found.pop(f"{part}.html").rstrip("\n") for part in PARTS}
    return found | {"index.html": Template(found["index.html"]).substitute(parts)}
