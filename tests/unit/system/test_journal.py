"""The journal: nothing that was written is lost, whatever characters it holds; the last word on an
id counts.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from asrtool.system.journal import Journal


@pytest.mark.parametrize(
    "mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r", "\r\n"]
)
def test_a_line_is_whole_whatever_its_text_and_its_id_hold(tmp_path: Path, mark: str) -> None:
    lines = [
        {"id": f"a{mark}1", "text": f"one{mark}two"},
        {"id": "b", "error": f"b: no file x{mark}y.wav"},
    ]
    journal = Journal(tmp_path, 0)
    journal.write(0, lines)
    assert journal.lines(0) == lines
    assert Journal(tmp_path, 1).done(0) == {f"a{mark}1"}


def test_the_last_error_of_an_id_is_kept(tmp_path: Path) -> None:
    for run, why in enumerate(("no such file", "truncated")):
        Journal(tmp_path, run).write(0, [{"id": "a", "error": why}])
    assert Journal(tmp_path, 1).lines(0) == [{"id": "a", "error": "truncated"}]


def test_a_success_is_not_replaced_by_an_error(tmp_path: Path) -> None:
    for run, line in enumerate(({"error": "busy"}, {"text": "one"}, {"error": "busy again"})):
        Journal(tmp_path, run).write(0, [{"id": "a", **line}])
    assert Journal(tmp_path, 2).lines(0) == [{"id": "a", "text": "one"}]
