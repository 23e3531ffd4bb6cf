"""Insertions per minute and hallucinations, by hand and by the command."""

from __future__ import annotations

import json

import pytest

from asrtool.bin import insertions as command
from asrtool.errors import UserError
from asrtool.score.insertions import kinds_of, measure, times_in_row

REFERENCES = {"noise1": "", "noise2": "", "said": "one two three", "rain": "very very very wet"}
HYPOTHESES = {
    "noise1": "",
    "noise2": "okay okay okay okay",
    "said": "one two two three four five six seven",
    "rain": "very very very wet",
}
SECONDS = {"noise1": 30.0, "noise2": 20.0, "said": 6.0, "rain": 4.0}


@pytest.mark.parametrize(
    ("reference", "hypothesis", "kinds"),
    [
        ("", "", set()),
        ("", "a", {"silence"}),
        ("a b", "a b c d", set()),
        ("a b", "a b c d e", {"length"}),
        ("a b c d e f", "x y x y x y", {"repetition"}),
        ("x y x y x y", "x y x y x y", set()),
        ("a", "", set()),
    ],
)
def test_kinds_of_hallucinations(reference, hypothesis, kinds):
    assert kinds_of(reference.split(), hypothesis.split()) == kinds


def test_how_often_a_stretch_comes_in_a_row():
    words = ["a", "b", "a", "b", "a", "b", "b"]
    assert [times_in_row(words, n) for n in (1, 2, 3, 4)] == [2, 3, 1, 1]
    assert times_in_row([], 1) == 0


def test_insertions_per_minute_and_by_label():
    labels = {name: "speech" if REFERENCES[name] else "noise" for name in REFERENCES}
    found = measure(REFERENCES, HYPOTHESES, SECONDS, labels=labels)
    assert found["all"].per_minute == pytest.approx(9) and found["all"].errors.insertions == 9
    assert (
        found["noise"].per_minute == pytest.approx(4 / (50 / 60))
        and found["noise"].errors.reference == 0
    )
    assert found["speech"].utterances == 2 and found["speech"].errors.deletions == 0
    assert found["all"].hallucinations == {
        "silence": ("noise2",),
        "length": ("said",),
        "repetition": ("noise2",),
    }
    assert found["all"].interval is None  # of too few utterances


def test_the_interval_holds_the_rate():
    texts = {f"u{i}": "" for i in range(40)}
    said = {name: "a b" if i % 4 == 0 else "" for i, name in enumerate(texts)}
    found = measure(texts, said, dict.fromkeys(texts, 6.0))["all"]
    assert found.interval[0] < found.per_minute == 5.0 < found.interval[1]


def test_what_is_missing_is_named():
    with pytest.raises(UserError, match="1 of 4 utterances have no hypothesis"):
        measure(
            REFERENCES, {key: value for key, value in HYPOTHESES.items() if key != "said"}, SECONDS
        )
    with pytest.raises(UserError, match="need the duration of each utterance.*'said'"):
        measure(REFERENCES, HYPOTHESES, {**SECONDS, "said": 0.0})


def test_the_command_writes_both_files_by_noise_level(tmp_path, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir(), out.mkdir()
    for name, rows in {
        "wav.scp": {key: f"{key}.wav" for key in sorted(SECONDS)},
        "text": {key: REFERENCES[key] for key in sorted(SECONDS)},
        "utt2spk": {key: key for key in sorted(SECONDS)},
        "utt2dur": {key: SECONDS[key] for key in sorted(SECONDS)},
        "utt2snr": {key: 10 if REFERENCES[key] else 0 for key in sorted(SECONDS)},
    }.items():
        (data / name).write_text("".join(f"{key} {value}\n" for key, value in rows.items()))
    (out / "text").write_text("".join(f"{key} {value}\n" for key, value in HYPOTHESES.items()))
    command.main([str(data), str(out), "--group-by", "snr"])
    printed = capsys.readouterr().out
    assert (
        "length: said: said 'one two three', written 'one two two three four five six seven'"
    ) in printed
    report = json.loads((out / "insertions.json").read_text())
    assert set(report["groups"]) == {"all", "0", "10"}
    assert report["groups"]["all"]["insertions_per_minute"] == pytest.approx(9)
    assert printed == (out / "insertions.txt").read_text()
