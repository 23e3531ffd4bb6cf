"""Names of files made of ids: usual ids stay, nothing leaves its folder, no two ids share a
name.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from urllib.parse import unquote

import pytest

from asrtool.system import file_names

USUAL = [
    "1089-134686-0000",
    "BAC009S0764W0121",
    "sp0.9-ann_1",
    "王-1",
    "émile",
    "a..b",
    "x@y,z+1=2(3)",
    "-v",
]
NASTY = [
    "", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "a b", "a\tb", "a\nb", "\0",
    "\x1b[31m", "a\u2028b",
    "a\u00a0b", "\u202ecod.exe", "%2E", "%", "%2F", "con", "NUL.txt", "c:x", "*", "\ud800",
    "x" * 300, "x" * 301,
    "字" * 100, "/" * 300, "." * 300,
]  # fmt: skip


@pytest.mark.parametrize("name", USUAL)
def test_usual_ids_stay_as_they_are(name: str) -> None:
    assert file_names.of(name, ".TextGrid") == f"{name}.TextGrid"


@pytest.mark.parametrize("name", NASTY)
def test_any_id_becomes_a_file_in_its_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    made = file_names.of(name, ".png", "echo-")
    (folder / made).write_text("x")
    (folder / file_names.of(name)).write_text("y")
    assert len(os.listdir(folder)) == 2 and os.listdir(tmp_path) == ["out"]
    assert made.isprintable() and not made.startswith(".") and made.endswith(".png")
    assert len(made.encode()) <= file_names.LONGEST


def test_other_ids_have_other_names() -> None:
    names = [
        *USUAL,
        *NASTY,
        *(file_names.of(name) for name in NASTY if file_names.of(name) != name),
    ]
    names += ["".join(letters) for letters in itertools.product("%2Fe./", repeat=4)]
    made = [file_names.of(name) for name in dict.fromkeys(names)]
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(
    "name", [name for name in USUAL + NASTY if 0 < len(name) < 100 and name != "\ud800"]
)
def test_an_encoded_name_can_be_undone(name: str) -> None:
    assert unquote(file_names.of(name)) == name
