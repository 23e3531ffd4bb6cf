"""Every package that asrtool may install is named with its licence."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_dependency_is_named_with_its_licence() -> None:
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    packages = set(re.findall(r'"([a-z][\w-]*)(?:\[[\w-]+\])?>=', setup)) | {"torch"}
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    named = {
        name
        for line in page.splitlines()
        if line.startswith("| ")
        for name in line.split("|")[1].strip().split(", ")
    }
    assert packages - named == set()
    assert "GPL" in next(line for line in page.splitlines() if "espeakng-loader" in line)
