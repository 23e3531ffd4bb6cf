"""Scoring against stored output of NIST sclite; data/score_sclite.json says how it was made."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

from asrtool.score import align, score, write_result
from asrtool.score.align import count_pairs, sclite_moves
from asrtool.score.compare import compare

DATA = json.loads(
    (Path(__file__).parent / "data" / "score_sclite.json").read_text(encoding="utf-8")
)
PAIRS = [(pair["reference"].split(), pair["hypothesis"].split()) for pair in DATA["pairs"]]


def test_counts_of_every_pair_equal_sclites():
    assert count_pairs(PAIRS, "sclite").tolist() == [pair["counts"] for pair in DATA["pairs"]]


def test_alignments_equal_sclites_position_by_position():
    ours = ["".join(tag for tag, _, _ in align(*pair, "sclite")) for pair in PAIRS]
    stored = [
        (pair["tags"], tags) for pair, tags in zip(DATA["pairs"], ours, strict=True) if pair["tags"]
    ]
    assert len(stored) > 100
    assert [theirs for theirs, _ in stored] == [tags for _, tags in stored]


def test_levenshtein_never_has_more_errors_than_sclite():
    fewest, weighted = (
        count_pairs(PAIRS, name)[:, 1:].sum(axis=1) for name in ("levenshtein", "sclite")
    )
    assert (fewest <= weighted).all()
    assert (fewest < weighted).any()  # else the pairs could not tell the two apart


def _printed(capitals: str) -> list[str]:
    """The lines of sclite's report without the remarks that we do not make."""
    return [
        line for line in DATA["report"]["printed"] if line.strip() and not line.startswith(capitals)
    ]


@pytest.fixture(scope="module")
def result() -> list[str]:
    rows = DATA["report"]["rows"]
    references = {name: reference for name, reference, _ in rows}
    hypotheses = {name: hypothesis for name, _, hypothesis in rows}
    report = score(references, hypotheses, alignment="sclite")
    file = io.StringIO()
    write_result(
        file,
        report,
        references,
        hypotheses,
        {name: name.split("-")[0] for name in references},
        "hyp.trn",
    )
    return [line for line in file.getvalue().split("\n") if line.strip()]


def test_speaker_tables_equal_sclites_character_by_character(result):
    theirs = _printed("# No Reference")
    theirs = theirs[
        : next(number for number, line in enumerate(theirs) if line.startswith("DETAILED"))
    ]
    assert result[: len(theirs)] == theirs


def test_alignment_dump_and_detailed_report_equal_sclites_line_by_line(result):
    # we score with case, and say so once: by the normaliser's name
    theirs = _printed("Attributes:")
    detail = next(number for number, line in enumerate(theirs) if line.startswith("DETAILED"))
    dump = next(number for number, line in enumerate(theirs) if "DUMP OF SYSTEM" in line)
    ours = next(number for number, line in enumerate(result) if "DUMP OF SYSTEM" in line)
    assert result[ours:] == theirs[dump:] + theirs[detail:dump]


def test_plain_and_compiled_kernel_take_the_same_path():
    pytest.importorskip("numba")
    for reference, hypothesis in PAIRS[:60]:
        numbers = {word: number for number, word in enumerate([*reference, *hypothesis])}
        arrays = [_ids(numbers, words) for words in (reference, hypothesis)]
        assert sclite_moves(*arrays).tolist() == sclite_moves.function(*arrays).tolist()


def _ids(numbers, words):
    return np.array([numbers[word] for word in words], dtype=np.int64)


def test_matched_pairs_equal_those_of_sc_stats():
    """sc_stats takes the first system's errors less the second's, and prints three decimals."""
    assert len(DATA["systems"]) >= 20
    for systems in DATA["systems"]:
        references, *sides = [
            {f"s-{row:04d}": text for row, text in enumerate(texts)}
            for texts in (systems["references"], *systems["hypotheses"])
        ]
        found, theirs = compare(references, *sides, alignment="sclite").pairs, systems["sc_stats"]
        assert found.segments == theirs["segments"]
        assert (-found.mean, found.deviation) == pytest.approx(
            (theirs["mean"], theirs["deviation"]), abs=6e-4
        )
        assert -found.z == pytest.approx(theirs["z"], abs=6e-4)
