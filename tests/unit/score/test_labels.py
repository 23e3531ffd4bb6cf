from __future__ import annotations

import numpy as np
import pytest

from asrtool.errors import UserError
from asrtool.score import score, summary
from asrtool.score.labels import (
    HIGHEST,
    LOWEST,
    labels_for,
    measure_snr,
    read_labels,
    read_speakers,
)
from asrtool.score.scoring import rank

TEXTS = {"u1": "a b", "u2": "a b c d e f g", "u3": "", "u4": "a b c d e f"}


@pytest.fixture
def write(tmp_path):
    def write(name: str, content: str):
        (tmp_path / name).write_text(content, encoding="utf-8")

    return write


def find(folder, *names, references=TEXTS, **measures):
    return labels_for(folder, names, references, "wer", "none", measures)


def test_labels_come_from_the_file_of_their_name(write, tmp_path):
    write("utt2accent", "u1 north east\nu2 south\nu3 unused\n")
    assert read_labels(tmp_path, "accent", ["u1", "u2"]) == {"u1": "north east", "u2": "south"}


def test_labels_of_speakers_go_to_their_utterances(write, tmp_path):
    write("utt2spk", "u1 anna\nu2 ben\nu3 anna\n")
    write("spk2gender", "anna f\nben m\n")
    assert read_labels(tmp_path, "gender", ["u1", "u2", "u3"]) == {"u1": "f", "u2": "m", "u3": "f"}


def test_an_unknown_label_lists_those_there(write, tmp_path):
    for name in ("utt2spk", "utt2accent", "utt2dur", "spk2utt", "spk2gender"):
        write(name, "u1 1\n")
    with pytest.raises(
        UserError,
        match=r"no label 'acent' .*; the folder has: accent, " r"gender, spk; always",
    ):
        read_labels(tmp_path, "acent", ["u1"])


def test_utterances_without_a_label_are_named(write, tmp_path):
    write("utt2accent", "u1 north\nu2\n")
    with pytest.raises(UserError, match="utt2accent: no accent for 2 of 3 utterances: u2, u3"):
        read_labels(tmp_path, "accent", ["u1", "u2", "u3"])


def test_length_counts_the_tokens_that_the_metric_counts():
    expected = {"u1": "1 to 6", "u2": "6 to 11", "u3": "under 1", "u4": "6 to 11"}
    assert find(None, "length") == {"length": expected}
    assert find(None, "length:2/7")["length"] == {
        "u1": "2 to 7",
        "u2": "7 and more",
        "u3": "under 2",
        "u4": "2 to 7",
    }


def test_speaking_rate_is_tokens_per_second(write, tmp_path):
    write("utt2dur", "u1 1.0\nu2 2.0\nu3 5.0\nu4 6.0\n")
    rates = find(tmp_path, "speaking_rate:1/3")["speaking_rate"]
    assert rates == {"u1": "1 to 3", "u2": "3 and more", "u3": "under 1", "u4": "1 to 3"}


def test_speaking_rate_is_measured_where_no_file_tells(tmp_path):
    seconds = {"u1": 1.0, "u2": 2.0, "u3": 5.0, "u4": 6.0}
    rates = find(
        tmp_path,
        "speaking_rate:1/3",
        seconds=lambda folder, ids: {name: seconds[name] for name in ids},
    )
    assert rates["speaking_rate"] == {
        "u1": "1 to 3",
        "u2": "3 and more",
        "u3": "under 1",
        "u4": "1 to 3",
    }


def test_speaking_rate_needs_a_data_directory():
    with pytest.raises(UserError, match="it needs a data directory, with utt2dur or with audio"):
        find(None, "speaking_rate")


def test_a_label_is_no_path(write, tmp_path):
    (tmp_path / "utt2a").mkdir()
    write("accent", "u1 north\n")
    with pytest.raises(UserError, match="no label 'a/../accent'"):
        find(tmp_path, "a/../accent", references={"u1": "a"})


def test_a_file_of_many_numbers_is_cut_at_its_quartiles_and_of_few_is_not(write, tmp_path):
    texts = {f"u{number:02}": "a" for number in range(20)}
    write("utt2age", "".join(f"{name} {20 + number}\n" for number, name in enumerate(texts)))
    write("utt2spk", "".join(f"{name} {number}\n" for number, name in enumerate(texts)))
    write("utt2channel", "".join(f"{name} {number % 3}\n" for number, name in enumerate(texts)))
    found = find(tmp_path, "age", "channel", "spk", references=texts)
    assert len(set(found["spk"].values())) == 20
    ranges = ["under 24.8", "24.8 to 29.5", "29.5 to 34.2", "34.2 and more"]
    assert sorted(set(found["age"].values()), key=rank) == ranges
    assert set(found["channel"].values()) == {"0", "1", "2"}


def test_snr_is_measured_unless_a_file_tells(write, tmp_path):
    def measured(folder, ids):
        assert folder == tmp_path
        return dict(zip(ids, (-3.0, 5.0, 17.0, 40.0), strict=True))

    values = find(tmp_path, "snr", snr=measured)["snr"]
    assert list(values.values()) == ["under 0", "5 to 10", "15 to 20", "30 and more"]
    write("utt2snr", "u1 0\nu2 10\nu3 10\nu4 20\n")
    assert find(tmp_path, "snr", snr=measured)["snr"] == {
        "u1": "0",
        "u2": "10",
        "u3": "10",
        "u4": "20",
    }


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("length:5/x", "--group-by length:5/x: edges are numbers, as in length:5/10/20"),
        ("length:5/5", "--group-by length:5/5: edges must rise"),
        ("accent:1/2", "--group-by accent:1/2: 'north' of utterance u1 is not a number"),
    ],
)
def test_edges_that_make_no_sense_are_refused(label, message, write, tmp_path):
    write("utt2accent", "".join(f"{name} north\n" for name in TEXTS))
    with pytest.raises(UserError, match=message):
        find(tmp_path, label)


def test_ranges_are_listed_by_size_and_names_by_alphabet():
    values = ["10 and more", "south", "under 2", "2 to 10", "north", "2nd"]
    assert sorted(values, key=rank) == [
        "under 2",
        "2 to 10",
        "10 and more",
        "2nd",
        "north",
        "south",
    ]


def test_speakers_come_from_utt2spk_or_the_ids_of_a_trn_file(write, tmp_path):
    write("utt2spk", "a-1 anna\n")
    assert read_speakers(tmp_path, tmp_path / "text", ["a-1"]) == {"a-1": "anna"}
    assert read_speakers(None, tmp_path / "ref.trn", ["a-1", "b"]) == {"a-1": "a", "b": "unknown"}
    assert read_speakers(None, tmp_path / "text", ["a-1"]) is None


def test_recognised_labels_give_accuracy_recall_and_confusion():
    names = [f"u{number:02}" for number in range(16)]
    truth = {name: "south" if number % 4 == 2 else "north" for number, name in enumerate(names)}
    answers = {
        name: "south" if number % 4 in (1, 2) else "north" for number, name in enumerate(names)
    }
    texts = dict.fromkeys(names, "a b")
    report = score(texts, texts, recognized={"accent": (truth, answers)})
    found = report.json()["recognition"]["accent"]
    assert (found["utterances"], found["accuracy"]) == (16, 0.75)
    assert found["mean_recall"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["confusion"] == {"north": {"north": 8, "south": 4}, "south": {"south": 4}}
    low, high = found["interval"]
    assert low < 0.75 < high
    assert "accent recognised: accuracy 75.00 % (95 %: " in summary.text(report)
    lines = [line.split() for line in summary.text(report).splitlines()]
    low, high = (f"{100 * value:.2f}" for value in found["classes"]["north"]["interval"])
    assert ["north", "12", "66.67", low, "to", high, "8", "4"] in lines
    assert ["south", "4", "100.00", "-", "0", "4"] in lines


def test_the_tables_of_one_utterance_have_no_empty_columns():
    report = score(
        {"u": "a"},
        {"u": "b"},
        labels={"accent": {"u": "north"}},
        recognized={"accent": ({"u": "north"}, {"u": "north"})},
        speakers={"u": "ann"},
    )
    said = summary.text(report)
    assert "95 %" not in said and "undefined" not in said
    assert "bootstrap: 1 utterance, too few for intervals: 8 are needed\n" in said
    assert "accent recognised: accuracy 100.00 %, mean recall 100.00 %" in said


def test_an_utterance_without_hypothesis_was_not_recognised_and_one_without_label_is_an_error():
    truth = dict.fromkeys(TEXTS, "north")
    texts = {name: text for name, text in TEXTS.items() if name != "u4"}
    answers = dict.fromkeys(texts, "north")
    report = score(TEXTS, texts, missing="deletions", recognized={"accent": (truth, answers)})
    assert report.recognized["accent"].confusion == {"north": {"(none)": 1, "north": 3}}
    del answers["u1"]
    with pytest.raises(UserError, match="1 of 4 hypotheses have no label 'accent': u1"):
        score(TEXTS, texts, missing="deletions", recognized={"accent": (truth, answers)})


@pytest.mark.parametrize("snr", [0.0, 10.0, 20.0, 30.0])
def test_snr_of_bursts_in_steady_noise_is_near_the_truth(snr):
    rng = np.random.default_rng(1)
    burst = np.sin(2 * np.pi * 220 * np.arange(8000) / 16000) * np.repeat(
        [1.0, 0.0, 0.7, 0.0], 2000
    )
    speech = np.tile(burst, 6)
    noise = rng.normal(size=len(speech)) * np.sqrt((speech**2).mean() / 10 ** (snr / 10))
    assert measure_snr((speech + noise).astype(np.float32), 16000) == pytest.approx(snr, abs=1.5)


def test_snr_of_silence_of_a_constant_and_of_clean_bursts_is_at_its_ends():
    assert measure_snr(np.zeros(16000, np.float32), 16000) == LOWEST
    assert measure_snr(np.full(16000, 0.5, np.float32), 16000) == LOWEST
    assert measure_snr(np.ones(3, np.float32), 16000) == LOWEST
    bursts = np.concatenate([np.zeros(8000), np.sin(np.arange(8000))])
    assert measure_snr(bursts.astype(np.float32), 16000) == HIGHEST
