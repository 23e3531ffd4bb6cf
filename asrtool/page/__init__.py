"""What the page of a server and the page without one share: microphone, picture of the sound,
texts, styles.
"""

from __future__ import annotations

from importlib import resources


def files(package: str) -> dict[str, str]:
    """Name -> text of a page: the files here, and those in the folder `page` of a package."""
    folders = (resources.files(__package__), resources.files(package).joinpath("page"))
    return {
        file.name: file.read_text(encoding="utf-8")
        for folder in folders
        for file in folder.iterdir()
        if file.name.endswith((".css", ".html", ".js"))
    }
