"""Lines and fields of a data directory's files: as in Kaldi, LF and ASCII white space divide, and
nothing else does.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from asrtool.data.kaldi import datadir, ops, tables
from asrtool.data.shards import index as shard_index
from asrtool.errors import UserError
from asrtool.types import Utterance

# where str.split() cuts
WIDE = ["\u2028", "\u2029", "\x85", "\u00a0", "\u3000", "\u2003", "\x1c", "\x1f"]


def utterances(mark: str) -> list[Utterance]:
    some = Utterance(
        id=f"a{mark}1",
        audio=f"/au{mark}dio/1.wav",
        duration=1.0,
        text=f"ONE{mark}TWO THREE",
        speaker=f"a{mark}nn",
        labels={"style": f"read{mark}aloud"},
    )
    return [some, replace(some, id="b-1", speaker="bob")]


@pytest.mark.parametrize("mark", WIDE)
@pytest.mark.parametrize("cut", [False, True])
def test_what_was_written_is_read(tmp_path: Path, mark: str, cut: bool) -> None:
    rows = utterances(mark)
    rows = (
        [replace(row, recording=f"rec{mark}{row.id}", start=0.5) for row in rows] if cut else rows
    )
    datadir.write(tmp_path, rows)
    assert datadir.read(tmp_path) == rows
    assert datadir.read(tmp_path, measure=False) == rows


@pytest.mark.parametrize("mark", WIDE)
def test_copies_parts_and_indexes_keep_them(tmp_path: Path, mark: str) -> None:
    rows = utterances(mark)
    datadir.write(tmp_path / "set", rows)
    ops.copy(tmp_path / "set", tmp_path / "copy")
    ops.combine(tmp_path / "both", [tmp_path / "copy"])
    assert datadir.read(tmp_path / "both") == rows
    parts = ops.split(tmp_path / "set", 2)
    assert [row for part in parts for row in datadir.read(part)] == rows
    (tmp_path / "shard.tar").write_bytes(bytes(4096))
    tables.write(
        tmp_path / shard_index.FILE,
        {row.id: f"{tmp_path}/shard.tar 512 10 0000abcd" for row in rows},
    )
    assert list(shard_index.ShardIndex(tmp_path, [row.id for row in rows]).offset) == [512, 512]


def test_spaces_and_tabs_divide_however_many(tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text("  a \t x  y.wav \t\nb\tz.wav\n")
    (tmp_path / "utt2dur").write_text("a\t1.5\nb  2 \n")
    (tmp_path / "text").write_text("a  ONE  TWO\t\nb\n")
    first, second = datadir.read(tmp_path)
    assert (first.id, first.audio, first.duration, first.text) == ("a", "x  y.wav", 1.5, "ONE  TWO")
    assert (second.audio, second.duration, second.text) == ("z.wav", 2.0, "")


@pytest.mark.parametrize("mark", [*WIDE, "\x07", "\x7f", "\u200b", "\u202e"])
def test_an_id_with_odd_characters_is_a_fault_with_its_line(tmp_path: Path, mark: str) -> None:
    for name in ("1.wav", "2.wav"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/1.wav\nb{mark}1 {tmp_path}/2.wav\n")
    (tmp_path / "utt2dur").write_text(f"a 1\nb{mark}1 1\n")
    faults = [str(problem) for problem in datadir.check(tmp_path) if problem.kind != "note"]
    what = "1 line whose id contains white space or invisible characters"
    assert len(faults) == 2 and all(what in fault for fault in faults)
    assert f"{tmp_path}/wav.scp:2: " in faults[1] and repr(f"b{mark}1") in faults[1]


@pytest.mark.parametrize("text", ["\u3000你好\u3000吗", "\u00a0ONE\u00a0"])
def test_a_transcript_keeps_its_white_space_until_it_is_mended(tmp_path: Path, text: str) -> None:
    (tmp_path / "1.wav").write_bytes(b"x")
    (tmp_path / "wav.scp").write_text(f"a {tmp_path}/1.wav\n")
    (tmp_path / "utt2dur").write_text("a 1\n")
    (tmp_path / "text").write_text(f"a {text}\n")
    assert datadir.read(tmp_path)[0].text == text
    assert any(
        "text:1: 1 line with white space other than a plain space" in str(one)
        for one in datadir.check(tmp_path)
    )
    datadir.fix(tmp_path)
    assert datadir.read(tmp_path)[0].text == " ".join(text.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": {"../x": "1"}}, "label '../x' cannot become a file utt2../x"),
        ({"labels": {"a-b": "1"}}, "label 'a-b' cannot become a file"),
        ({"labels": {"dur": "1"}}, "label 'dur' cannot become a file"),
        ({"audio": "talk .wav "}, "audio must not be empty, or start or end with a space"),
    ],
)
def test_what_would_not_be_read_again_is_not_written(
    tmp_path: Path, change: dict, message: str
) -> None:
    row = replace(Utterance(id="a", audio="a.wav", duration=1.0, speaker="s"), **change)
    with pytest.raises(UserError, match=message):
        datadir.write(tmp_path / "set", [row])
    assert not (tmp_path / "set").exists()
