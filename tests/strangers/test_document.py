"""docs/extending.md shows the code that the tests run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(__file__).parent / "package"


@pytest.mark.parametrize(
    ("name", "language"),
    [
        ("my_package/blstm.py", "python"),
        ("my_package/bag.py", "python"),
        ("my_package/__init__.py", "python"),
        ("train_blstm.yaml", "yaml"),
    ],
)
def test_the_page_shows_the_file(name, language):
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    shown = re.findall(rf"^```{language}\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    assert (PACKAGE / name).read_text(encoding="utf-8") in shown
