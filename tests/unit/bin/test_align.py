"""`asrtool align`: files of times for a set, and one file on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import soundfile

from asrtool.bin import align
from asrtool.data import audio
from asrtool.data.kaldi import datadir, tables
from tests import toy_experiment as toys


def run(toy: Path, data: Path, out: Path) -> list[dict]:
    align.main([str(toy / "exp"), "--data", str(data), "--out", str(out)])
    return [json.loads(row) for row in (out / "alignments.jsonl").read_text().splitlines()]


def test_every_word_of_a_set_has_its_time(toy, tmp_path):
    found = run(toy, toy / "dump" / "test", tmp_path / "out")
    texts = {one.id: one.text for one in datadir.read(toy / "data" / "test")}
    assert {line["id"]: " ".join(word["text"] for word in line["words"]) for line in found} == texts
    rows = [row.split() for row in (tmp_path / "out" / "words.ctm").read_text().splitlines()]
    assert len(rows) == sum(len(text.split()) for text in texts.values())
    assert all(len(row) == 6 and float(row[3]) > 0 for row in rows)
    assert len(list((tmp_path / "out" / "textgrid").iterdir())) == len(texts)
    line = found[0]
    assert [part["text"] for part in line["tokens"]] == list(line["text"])
    assert line["words"][-1]["end"] <= line["seconds"]


def test_a_data_directory_without_features_gives_the_same(toy, tmp_path):
    stored = run(toy, toy / "dump" / "test", tmp_path / "stored")
    computed = run(toy, toy / "data" / "test", tmp_path / "computed")
    assert [line["words"] for line in stored] == [line["words"] for line in computed]


def test_the_name_of_a_file_is_never_run(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        audio.AudioError, match="no such file or directory; commands are only run from wav.scp"
    ):
        align.main([str(toy / "exp"), "--audio", "x;touch ran|", "--text", "ab"])
    assert not Path("ran").exists()


def test_an_utterance_too_short_for_its_text_is_named(toy, tmp_path, capsys):
    data = Path(shutil.copytree(toy / "dump" / "test", tmp_path / "data"))
    texts = tables.read(data / "text").values()
    tables.write(data / "text", {**texts, "u002": "abcde " * 20})
    found = run(toy, data, tmp_path / "out")
    assert len(found) == 11
    assert (
        "1 of 12 utterances failed; see failed.jsonl for the reasons: u002"
        in capsys.readouterr().err
    )
    assert "too few frames for its 119 tokens" in (tmp_path / "out" / "failed.jsonl").read_text()


def test_the_ctm_of_a_segment_counts_from_its_recording(toy, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    soundfile.write(tmp_path / "long.wav", toys.sound("ab"), toys.RATE)
    seconds = len(toys.sound("ab")) / toys.RATE
    (data / "wav.scp").write_text(f"rec {tmp_path / 'long.wav'}\n")
    (data / "segments").write_text(f"rec-1 rec 0.02 {seconds:.4f}\n")
    (data / "text").write_text("rec-1 ab\n")
    (data / "utt2spk").write_text("rec-1 rec-1\n")
    (line,) = run(toy, data, tmp_path / "out")
    row = (tmp_path / "out" / "words.ctm").read_text().split()
    assert row[0] == "rec"
    assert float(row[2]) == pytest.approx(line["words"][0]["start"] + 0.02)


def test_one_file_is_printed_as_ctm(toy, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", toys.sound("abc de"), toys.RATE)
    align.main([str(toy / "exp"), "--audio", str(tmp_path / "a.wav"), "--text", "abc de"])
    rows = [row.split() for row in capsys.readouterr().out.splitlines()]
    assert [(row[0], row[4]) for row in rows] == [("a", "abc"), ("a", "de")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give either --data and --out, or --audio and --text"),
        (["--data", "x"], "--data needs --out"),
        (["--audio", "x"], "--audio needs --text"),
    ],
)
def test_half_of_the_options_is_refused(options, message, capsys):
    with pytest.raises(SystemExit):
        align.main(["exp", *options])
    assert message in capsys.readouterr().err
