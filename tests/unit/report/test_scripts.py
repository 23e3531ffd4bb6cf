"""The page's scripts without a browser, in Node where there is one: alignments, filters, orders,
axes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib import resources

import pytest

from asrtool.report.page import SCRIPTS

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js on this machine")

COLUMNS = """const rows = makeRows({
  id: ["a-10", "a-9", "b-1"], ops: ["1C1S1D1I", "2C", "1I"], ref: ["the cat sat", "hello there",
    ""],
  hyp: ["the hat um", "hello there", "oh"], missing: [1], seconds: [1.5, null, 2],
    labels: {accent: {values: ["north"],
  of: [0, -1, 0]}}});
const found = (what) => rows.filter(makeTest(what)).map((row) => row.id);
"""


def source(name: str) -> str:
    return resources.files("asrtool.report").joinpath("template", name).read_text(encoding="utf-8")


def run(script: str) -> object:
    """The value of the last expression, with data.js before it."""
    text = f"{source('data.js')}\n{COLUMNS}\nconsole.log(JSON.stringify({script}))"
    done = subprocess.run(["node", "-"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_script_is_javascript():
    together = '"use strict";\n(() => {\n' + "\n".join(map(source, SCRIPTS)) + "})();\n"
    done = subprocess.run(["node", "--check", "-"], input=together, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_alignment_from_its_runs():
    columns = run("align(rows[0].ops, rows[0].ref, rows[0].hyp)")
    assert [tuple(column.values()) for column in columns] == [
        ("C", "the", "the"),
        ("S", "cat", "hat"),
        ("D", "sat", None),
        ("I", None, "um"),
    ]
    assert run("rows.map((row) => [row.errors, row.tokens, row.rate, row.missing])") == [
        [3, 3, 1, False],
        [0, 2, 0, True],
        [1, 0, None, False],  # infinity is null in JSON
    ]


@pytest.mark.parametrize(
    ("what", "ids"),
    [
        ("{}", ["a-10", "a-9", "b-1"]),
        ("{query: 'HELLO'}", ["a-9"]),
        ("{query: 'a- the'}", ["a-10", "a-9"]),
        ("{query: 'cat>hat'}", ["a-10"]),
        ("{query: 'hat>cat'}", []),
        ("{query: '-sat'}", ["a-10"]),
        ("{query: '+oh'}", ["b-1"]),
        ("{query: '+hat'}", []),
        ("{kind: 'C'}", ["a-9"]),
        ("{kind: 'M'}", ["a-9"]),
        ("{kind: 'D'}", ["a-10"]),
        ("{labels: {accent: 'north'}}", ["a-10", "b-1"]),
    ],
)
def test_filters(what, ids):
    assert run(f"found({what})") == ids


def test_orders_put_what_has_no_value_last_either_way():
    for down in ("true", "false"):
        assert run(f"sortRows(rows, 'seconds', {down}).at(-1).id") == "a-9"
    assert run("sortRows(rows, 'id', false).map((row) => row.id)") == ["a-9", "a-10", "b-1"]
    assert run("sortRows(rows, 'errors', true).map((row) => row.id)") == ["a-10", "b-1", "a-9"]


def test_marks_of_an_axis_are_round():
    assert run("[ticks(0, 2.4, 5), ticks(0, 0.0031, 4), ticks(-2, 2.1, 4), ticks(0, 400, 5)]") == [
        [0, 0.5, 1, 1.5, 2],
        [0, 0.001, 0.002, 0.003],
        [-2, 0, 2],
        [0, 100, 200, 300, 400],
    ]


def test_an_axis_of_epochs_marks_the_last_step_of_whole_ones():
    assert run("epochMarks([10, 20, 30, 40], 4)") == [[10, 1], [20, 2], [30, 3], [40, 4]]
    assert run("epochMarks([10, 20, 30, 40, 50], 2)") == [[50, 5]]
    assert run("[epochMarks([7], 6), epochMarks([], 6)]") == [[[7, 1]], []]
    assert run("[1, 10, 11, 41].map((step) => epochOf([10, 20, 30, 40], step))") == [1, 1, 2, None]


def test_letters_over_a_spectrogram_are_written_as_words():
    tokens = '["h", "i", "<space>", "y", "o", "u"]'
    detail = f"{{tokens: {tokens}, times: [0, 1, 2, 3, 4, 5], confidences: [1, 1, 1, 1, 0.2, 1]}}"
    assert run(f"spoken({detail})") == [
        {"text": "hi", "time": 0.5, "unsure": False, "ticks": [0, 1]},
        {"text": "you", "time": 4, "unsure": True, "ticks": [3, 4, 5]},
    ]
    for alone in ('["天", "气"]', '["▁hel", "lo"]', '["<space>", "ab"]'):
        assert run(f"spoken({{tokens: {alone}, times: [0, 1]}}).map((one) => one.ticks)") == [
            [0],
            [1],
        ]
