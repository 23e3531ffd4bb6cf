"""The page, read as HTML: the numbers of score.json, escaped texts, refusals; test_browser.py sees
what is drawn.
"""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile

from asrtool.bin import report, score
from asrtool.errors import UserError
from asrtool.report import facts
from tests import toy_result

VOID = {"meta", "br", "link", "img", "input", "line", "circle", "rect"}


class Page(HTMLParser):
    """Checks that elements are closed in order; collects texts, ids and whatever could load
    something.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.loads: list[tuple[str, str]] = []
        self.anchors: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self.anchors += [attrs["href"][1:]] if attrs.get("href", "").startswith("#") else []
        self.loads += [
            (tag, attrs[name])
            for name in ("src", "href")
            if not attrs.get(name, "#").startswith("#")
        ]
        assert not [name for name in attrs if name.startswith("on") or name == "style"], (
            "the policy forbids them"
        )

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] not in (["script"], ["style"]):
            self.text += data


def made(folder: Path, *options: str) -> tuple[Page, dict, str]:
    """The page, its data and its text."""
    report.main([str(folder), *options])
    text = (folder / "report.html").read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[
        1
    ]
    return Page(text), json.loads(data), text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return toy_result.make(tmp_path)


def test_the_page_is_whole_and_loads_nothing(folder):
    page, data, text = made(folder)
    assert page.loads == []
    assert set(page.anchors) <= set(page.ids)
    assert "default-src 'none'" in text
    assert len(data["columns"]["id"]) == 12


def test_the_summary_says_what_score_json_says(folder):
    page, _, _ = made(folder)
    stored = json.loads((folder / "score.json").read_text())
    assert f"{100 * stored['total']['rate']:.2f}" in page.text
    for name, (low, high) in stored["intervals"]["utterance"].items():
        assert f"{100 * low:.2f} – {100 * high:.2f}" in page.text or name == "correct"
    assert stored["files"]["reference"]["sha256"] in page.text
    assert "12 of 12 utterances" in page.text
    for group in stored["groups"]["accent"].values():
        assert f"{100 * group['rate']:.2f}" in page.text


def test_alignments_rebuild_both_texts_and_all_counts(folder):
    _, data, _ = made(folder)
    stored, columns = json.loads((folder / "score.json").read_text())["total"], data["columns"]
    sums = dict.fromkeys("CSDI", 0)
    for ops, ref, hyp in zip(columns["ops"], columns["ref"], columns["hyp"], strict=True):
        runs = {tag: 0 for tag in "CSDI"}
        for number, tag in re.findall(r"(\d+)([CSDI])", ops):
            runs[tag] += int(number)
            sums[tag] += int(number)
        assert runs["C"] + runs["S"] + runs["D"] == len(ref.split())
        assert runs["C"] + runs["S"] + runs["I"] == len(hyp.split())
    assert list(sums.values()) == [
        stored[name] for name in ("correct", "substitutions", "deletions", "insertions")
    ]


def test_the_worst_come_first_and_others_by_name(folder):
    _, data, _ = made(folder, "--worst", "3", "--also", "s000-00000")
    rows, columns = [detail["row"] for detail in data["details"]], data["columns"]
    errors = [sum(map(int, re.findall(r"(\d+)[SDI]", ops))) for ops in columns["ops"]]
    assert [errors[row] for row in rows[:3]] == sorted(errors, reverse=True)[:3]
    assert columns["id"][rows[-1]] == "s000-00000"
    with pytest.raises(UserError, match="no utterance 'nobody'"):
        report.main([str(folder), "--also", "nobody"])


def test_texts_cannot_break_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evil = "</script><script>alert(1)</script>{{data}} <b>&amp; \u2028"
    folder = toy_result.make(
        tmp_path, texts=({"u-1": f"a {evil}", "u-2": "b"}, {"u-1": "a c", "u-2": f"b {evil}"})
    )
    page, data, text = made(folder)
    assert text.count("</script>") == 2
    assert "alert(1)" in " ".join(data["columns"]["ref"])
    assert "b" not in page.ids


def test_sound_is_linked_relative_to_the_page_or_embedded(folder, tmp_path):
    _, data, _ = made(folder)
    assert len(data["links"]) == 12
    assert (folder / data["links"][0]).resolve() == tmp_path / "audio" / "s000-00000.wav"
    _, data, _ = made(folder, "--audio", "embed", "--also", "s000-00000", "--worst", "0")
    assert data["links"] == []
    wave, rate = soundfile.read(
        io.BytesIO(base64.b64decode(data["details"][0]["sound"].partition(",")[2]))
    )
    assert (rate, len(wave)) == (16000, 24000)
    _, data, _ = made(folder, "--audio", "none")
    assert data["links"] == [] and not any("sound" in detail for detail in data["details"])


def test_it_is_found_from_anywhere(folder, tmp_path, monkeypatch):
    """Paths in score.json and wav.scp start where the recipe ran."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    _, data, _ = made(folder, "--also", "s000-00000")
    images = {detail["row"]: detail.get("image", "") for detail in data["details"]}
    assert images[data["columns"]["id"].index("s000-00000")].startswith("data:image/png;base64,")


def test_what_cannot_be_shown_is_named_on_the_page(folder):
    page, _, _ = made(folder, "--also", "s000-00000", "--also", "s002-00011")
    assert "No spectrogram for" in page.text and "no such file" in page.text


def test_missing_hypotheses_are_counted_and_marked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = {"u-1": "one two", "u-2": "three"}, {"u-1": "one two"}
    folder = toy_result.make(tmp_path, texts=texts, score_it=False)
    score.main([str(tmp_path / "data/test"), str(folder), "--missing", "deletions"])
    page, data, _ = made(folder)
    assert "1 of 2 utterances; 1 without a hypothesis, counted as deletions" in page.text
    assert data["columns"]["missing"] == [1]


def test_recognised_labels_have_their_confusions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = toy_result.make(tmp_path, 40, speakers=10, score_it=False)
    path = folder / "hyps.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text(
        "".join(json.dumps({**line, "labels": {"accent": "north"}}) + "\n" for line in lines)
    )
    score.main([str(tmp_path / "data/test"), str(folder)])
    page, _, _ = made(folder)
    assert (
        "Recognised accent" in page.text
        and "accuracy 50.00 %" in page.text
        and "as north" in page.text
    )
    assert "by speaker" in page.text, "there are enough speakers for intervals"


def test_why_an_utterance_has_no_hypothesis(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = toy_result.make(
        tmp_path, texts=({"u-1": "one", "u-2": "two"}, {"u-1": "one"}), score_it=False
    )
    (folder / "failed.jsonl").write_text('{"id": "u-2", "error": "u-2: damaged"}\n')
    score.main([str(tmp_path / "data/test"), str(folder), "--missing", "deletions"])
    assert made(folder)[1]["failed"] == {"u-2": "u-2: damaged"}


@pytest.mark.parametrize("texts", [("", ""), ("", "noise"), ("天 气", "天氣")])
def test_empty_and_single_utterances(tmp_path, monkeypatch, texts):
    monkeypatch.chdir(tmp_path)
    page, data, _ = made(
        toy_result.make(tmp_path, texts=tuple({"u": text} for text in texts), metric="cer")
    )
    assert "character error rate" in page.text
    assert data["columns"]["id"] == ["u"]


def test_the_same_input_gives_the_same_bytes(folder):
    first, second = (made(folder)[2] for _ in range(2))
    assert first == second


def test_curves_know_where_epochs_end(tmp_path):
    records = [(1, 20), (1, 40), (2, 60), (2, 80), (4, 160)]  # epochs of 45 steps, one unrecorded
    lines = [
        {"event": "step", "phase": "train", "epoch": epoch, "step": step, "loss": 1.0}
        for epoch, step in records
    ]
    lines.insert(2, {"event": "valid", "phase": "train", "epoch": 1, "step": 45, "valid/loss": 1.0})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (phase,) = facts.curves(tmp_path)
    assert phase["epochs"] == [45, 159, 159]


def test_one_of_each_is_counted_as_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, text = made(toy_result.make(tmp_path, texts=({"u": "a"}, {"u": "b"})))
    assert "1 error in 1 reference word<" in text and "1 of 1 utterance<" in text


def test_a_result_without_data_directory_or_experiment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ref").write_text("u1 a b\n")
    Path("hyp").write_text("u1 a c\n")
    score.main(["ref", "hyp", "--out", "out"])
    page, data, _ = made(Path("out"))
    assert "No audio and no spectrograms" in page.text
    assert data["curves"] == [] and data["links"] == []


# -- refusals ----------------------------------------------------------------


def test_what_was_not_scored_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        report.main([str(tmp_path / "nothing")])
    with pytest.raises(UserError, match="holds no score.json; expected what stage 5 wrote"):
        report.main([str(tmp_path)])


@pytest.mark.parametrize("side", ["reference", "hypothesis"])
def test_files_that_changed_since_they_were_scored(folder, tmp_path, side):
    path = {"reference": tmp_path / "data/test/text", "hypothesis": folder / "text"}[side]
    path.write_text(path.read_text() + "\n")
    with pytest.raises(
        UserError,
        match=r"text has changed since .*score\.json was computed from " r"it; score again",
    ):
        report.main([str(folder)])
    path.unlink()
    with pytest.raises(UserError, match=f"its {side} .*text no longer exists; score again"):
        report.main([str(folder)])


def test_counts_that_the_files_do_not_give(folder):
    stored = json.loads((folder / "score.json").read_text())
    stored["total"]["insertions"] += 1
    (folder / "score.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="counts .* of C, S, D, I, but its files give"):
        report.main([str(folder)])


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("key_frames", [0.1, None], "'key_frames' .* a list of finite numbers"),
        ("curves", {"gate": {"values": [1]}}, "'curves.gate' .* `step`, seconds above 0"),
        (
            "curves",
            {"gate": {"step": 0.1, "values": [1, float("nan")]}},
            "'curves.gate' .* finite numbers",
        ),
        (
            "maps",
            {"heads": {"step": 0.1, "values": [[1], [1, 2]]}},
            "'maps.heads' .* equally long lists",
        ),
        ("classes", {"accent": [0.5]}, "'classes.accent' .* class and probability"),
        ("times", [0.5], "'times' .* as many numbers as tokens"),
    ],
)
def test_taps_that_are_not_as_documented(folder, field, value, said):
    (folder / "taps.jsonl").write_text(json.dumps({"id": "s000-00000", field: value}) + "\n")
    with pytest.raises(UserError, match=f"utterance s000-00000: field {said}"):
        report.main([str(folder), "--also", "s000-00000"])


def test_taps_of_unknown_utterances_and_lines_that_are_no_json(folder):
    (folder / "taps.jsonl").write_text('{"id": "nobody"}\n')
    with pytest.raises(UserError, match="taps.jsonl:1: utterance 'nobody' was not scored"):
        report.main([str(folder)])
    (folder / "taps.jsonl").write_text("\n{oops\n")
    with pytest.raises(UserError, match="taps.jsonl:2: not JSON"):
        report.main([str(folder)])
