"""The estimator against KenLM's lmplz, n-gram by n-gram."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from asrtool.lm import kneser_ney

GOLDEN = json.loads((Path(__file__).parent / "data" / "ngram_lmplz.json").read_text("utf-8"))


def entries(arpa: str) -> tuple[list[str], dict[str, tuple[float, ...]]]:
    """The header's counts, and the log10 probability and backoff of each n-gram."""
    header, found = [], {}
    for line in arpa.splitlines():
        fields = line.split("\t")
        if line.startswith("ngram "):
            header.append(line)
        elif len(fields) > 1:
            found[fields[1]] = tuple(float(value) for value in (fields[0], *fields[2:]))
    return header, found


@pytest.mark.parametrize("name", GOLDEN["arpa"])
def test_the_file_is_that_of_lmplz(name):
    case = GOLDEN["arpa"][name]
    options = case["options"]
    prune = options[options.index("--prune") + 1 :] if "--prune" in options else [0]
    words, orders = kneser_ney.estimate(
        [line.split() for line in GOLDEN["text"][: case["lines"]]],
        int(options[1]),
        prune=[int(value) for value in prune],
        fallback=kneser_ney.FALLBACK if "--discount_fallback" in options else None,
    )
    stream = io.StringIO()
    kneser_ney.write(stream, words, orders)
    header, found = entries(stream.getvalue())
    wanted_header, wanted = entries(case["file"])
    assert header == wanted_header
    assert found.keys() == wanted.keys()
    for gram, values in wanted.items():
        assert found[gram] == pytest.approx(values, abs=1e-6), gram
