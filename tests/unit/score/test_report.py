from __future__ import annotations

import io
import json

import pytest

from asrtool.errors import UserError
from asrtool.score import ErrorCounts, score, summary, write_result

MANY = {f"s{number % 9}-{number:02}": "a b c d" for number in range(36)}
REFERENCES = {"u1": "the cat sat", "u2": "hello", "u3": "", "u4": "a b"}
HYPOTHESES = {"u1": "the hat sat", "u2": "hello there", "u3": "", "u4": "a b"}
ACCENTS = {"accent": {"u1": "north", "u2": "north", "u3": "south", "u4": "south"}}


def test_totals_are_the_sums_over_utterances():
    report = score(REFERENCES, HYPOTHESES)
    assert report.total == ErrorCounts(correct=5, substitutions=1, deletions=0, insertions=1)
    assert report.counts.tolist() == [[2, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [2, 0, 0, 0]]
    assert report.worst == ("u1", "u2")


def test_the_order_of_the_hypotheses_does_not_matter():
    assert score(REFERENCES, dict(reversed(HYPOTHESES.items()))) == score(REFERENCES, HYPOTHESES)


def test_the_normaliser_acts_on_both_sides():
    report = score({"u": "你好，世界"}, {"u": "你 好 世界。"}, metric="cer", normalize="zh")
    assert report.total == ErrorCounts(correct=4)


def test_missing_and_extra_hypotheses_stop_with_names_and_counts():
    with pytest.raises(UserError) as error:
        score(REFERENCES, {"u1": "the cat sat", "x": "", "y": ""})
    assert str(error.value) == (
        "3 of 4 utterances have no hypothesis: u2, u3, u4 (--missing deletions counts them as "
        "deletions); "
        "2 of 3 hypotheses have no reference: x, y"
    )


def test_missing_hypotheses_count_as_deletions_when_asked_and_are_named():
    report = score(REFERENCES, {"u1": "the cat sat", "u3": "", "u4": "a b"}, missing="deletions")
    assert report.total == ErrorCounts(correct=5, deletions=1)
    assert (
        "coverage 3 of 4 utterances; 1 without a hypothesis counted as deletions: u2"
        in summary.text(report)
    )
    assert report.json()["coverage"] == {
        "with_hypothesis": 3,
        "missing_counted_as_deletions": ["u2"],
    }


def test_an_extra_hypothesis_is_an_error_even_then():
    with pytest.raises(UserError, match="have no reference: x"):
        score(REFERENCES, {**HYPOTHESES, "x": "a"}, missing="deletions")


def test_groups_add_up_to_the_total_and_count_alike_in_the_macro_average():
    report = score(REFERENCES, HYPOTHESES, labels=ACCENTS)
    north, south = report.groups["accent"]["north"], report.groups["accent"]["south"]
    assert north.total + south.total == report.total
    assert (north.utterances, north.total.rate, south.total.rate) == (2, 0.5, 0.0)
    assert report.macro["accent"].rate == 0.25


def test_the_summary_has_the_lines_that_people_grep():
    lines = summary.text(score(REFERENCES, HYPOTHESES, labels=ACCENTS)).splitlines()
    assert lines[:4] == [
        "| SPKR   | # Snt # Wrd | Corr    Sub    Del    Ins    Err  S.Err |",
        "| Sum/Avg|    4      6 | 83.3   16.7    0.0   16.7   33.3   50.0 |",
        "%WER 33.33 [ 2 / 6, 1 ins, 0 del, 1 sub ]",
        "Overall -> 33.33 % N=6 C=5 S=1 D=0 I=1",
    ]
    assert [line.split()[:3] for line in lines if line.startswith(("north", "south"))] == [
        ["north", "2", "4"],
        ["south", "2", "2"],
    ]


def test_a_character_rate_is_never_called_wer():
    text = summary.text(score(REFERENCES, HYPOTHESES, metric="cer"))
    assert "%CER" in text
    assert "WER" not in text


def test_json_has_the_agreed_keys_and_fractions():
    data = json.loads(
        json.dumps(score(REFERENCES, HYPOTHESES, labels=ACCENTS).json(), allow_nan=False)
    )
    assert data["metric"] == "wer"
    assert data["normalizer"] == "none"
    assert data["total"] == {
        "correct": 5,
        "substitutions": 1,
        "deletions": 0,
        "insertions": 1,
        "reference": 6,
        "rate": pytest.approx(1 / 3),
    }
    assert set(data["groups"]["accent"]["north"]) > set(data["total"])
    assert data["interval"] is None  # of four utterances


def test_the_interval_is_around_the_rate():
    data = score(MANY, {name: "a b x" if name < "s5" else "a b c d" for name in MANY}).json()
    low, high = data["interval"]
    assert 0 < low < data["total"]["rate"] < high < 1
    assert data["interval"] == data["intervals"]["utterance"]["rate"]


def test_a_set_without_reference_tokens_has_counts_but_no_rate():
    report = score(
        {"n1": "", "n2": ""}, {"n1": "oh", "n2": ""}, labels={"kind": {"n1": "car", "n2": "rain"}}
    )
    assert report.json()["total"]["rate"] is None
    assert report.json()["interval"] is None
    assert report.json()["groups"]["kind"]["car"]["rate"] is None
    assert "| Sum/Avg|    2      0 |    0*     0*     0*     1*     1*  50.0 |" in summary.text(
        report
    )
    assert "%WER inf [ 1 / 0, 1 ins, 0 del, 0 sub ]" in summary.text(report)


def test_han_characters_line_up_on_a_terminal():
    references, hypotheses = {"u": "今天 天气"}, {"u": "今 天 汽 好"}
    report = score(references, hypotheses, metric="cer")
    file = io.StringIO()
    write_result(file, report, references, hypotheses, {"u": "s"}, "hyp")
    lines = file.getvalue().split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("REF:"))
    assert lines[start : start + 3] == [
        "REF:  今 天 天 气 ",
        "HYP:  今 天 汽 好 ",
        "Eval:       S  S  ",
    ]


def test_speakers_give_a_second_interval_everywhere():
    speakers = {name: name[:2] for name in MANY}
    accents = {"accent": {name: "north" if name[-1] in "02468" else "south" for name in MANY}}
    hypotheses = {name: "a b x" if name < "s5" else "a b c d" for name in MANY}
    data = score(MANY, hypotheses, labels=accents, speakers=speakers).json()
    assert data["speakers"] == 9
    for found in (data, data["groups"]["accent"]["north"], data["macro_average"]["accent"]):
        assert set(found["intervals"]) == {"utterance", "speaker"}
        rates = [
            bounds["rate"] if isinstance(bounds, dict) else bounds
            for bounds in found["intervals"].values()
        ]
        assert all(low < 5 / 18 < high for low, high in rates)
    assert (
        "speaker"
        not in score(REFERENCES, HYPOTHESES, speakers=dict.fromkeys(REFERENCES, "anna")).intervals
    )


def test_a_hypothesis_that_runs_away_is_named():
    report = score(
        {"u1": "a b", "u2": "", "u3": ""}, {"u1": "a b a b a", "u2": "oh", "u3": "oh oh oh"}
    )
    assert report.runaway == ("u1", "u3")
    assert "2 with more than twice as many tokens as were spoken: u1, u3" in summary.text(report)


def test_an_empty_reference_set_is_an_error():
    with pytest.raises(UserError, match="the reference holds no utterance"):
        score({}, {})
