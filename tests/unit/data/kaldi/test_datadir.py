from __future__ import annotations

import math
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.types import Utterance

RATE = 16000


def save_audio(path: Path, seconds: float = 1.0) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * RATE), dtype=np.float32), RATE)
    return str(path)


def three(folder: Path) -> list[Utterance]:
    """Three utterances of two speakers with audio on the disk; one has no accent, one no words."""
    return [
        Utterance(
            id="ann-1",
            audio=save_audio(folder / "1.wav"),
            duration=1.0,
            text="HELLO  WORLD",
            speaker="ann",
            labels={"accent": "Scots", "style": "read aloud"},
        ),
        Utterance(
            id="ann-2",
            audio=save_audio(folder / "2.wav", 0.5),
            duration=0.5,
            text="",
            speaker="ann",
            labels={"accent": "Scots", "style": "free"},
        ),
        Utterance(
            id="bob-1",
            audio=save_audio(folder / "3.wav", 2),
            duration=2.0,
            text="你好 吗",
            speaker="bob",
            labels={"style": "free"},
        ),
    ]


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A valid data directory of three utterances."""
    datadir.write(tmp_path / "set", three(tmp_path / "audio"))
    return tmp_path / "set"


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def lines(folder: Path, name: str) -> list[str]:
    return (folder / name).read_text().splitlines()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def faults(folder: Path) -> list[str]:
    return [str(problem) for problem in datadir.check(folder) if problem.kind != "note"]


# -- reading and writing ---------------------------------------------------


def test_what_was_written_is_read(tmp_path: Path) -> None:
    utterances = three(tmp_path / "audio")
    utterances[0] = replace(utterances[0], features="feats.1.ark:6", num_frames=98)
    utterances[1] = replace(utterances[1], features="feats.1.ark:31372", num_frames=48)
    utterances[2] = replace(utterances[2], features="feats.2.ark:6", num_frames=198)
    datadir.write(tmp_path / "set", utterances)
    assert datadir.read(tmp_path / "set") == utterances
    assert lines(tmp_path / "set", "spk2utt") == ["ann ann-1 ann-2", "bob bob-1"]
    assert lines(tmp_path / "set", "text") == ["ann-1 HELLO  WORLD", "ann-2", "bob-1 你好 吗"]


def test_the_order_of_utterances_does_not_change_a_byte(tmp_path: Path, made: Path) -> None:
    utterances = three(tmp_path / "audio")
    random.Random(1).shuffle(utterances)
    datadir.write(tmp_path / "other", utterances)
    assert contents(tmp_path / "other") == contents(made)


def test_ids_are_sorted_by_their_bytes(tmp_path: Path) -> None:
    some = Utterance(id="", audio="a.wav", duration=1.0, speaker="s")
    datadir.write(
        tmp_path,
        [replace(some, id=key, audio=key) for key in ("é", "b", "B", "a-1", "a", "a.1", "好", "Z")],
    )
    assert [row.split()[0] for row in lines(tmp_path, "text")] == [
        "B",
        "Z",
        "a",
        "a-1",
        "a.1",
        "b",
        "é",
        "好",
    ]


def test_segments_carry_recording_start_and_duration(tmp_path: Path) -> None:
    path = save_audio(tmp_path / "long.wav", 10)
    cut = Utterance(
        id="a-1", audio=path, duration=1.25, text="ONE", speaker="a", recording="long", start=0.5
    )
    rows = [cut, replace(cut, id="a-2", start=8.0, duration=1.9375)]
    datadir.write(tmp_path / "set", rows)
    assert lines(tmp_path / "set", "segments") == ["a-1 long 0.5 1.75", "a-2 long 8 9.9375"]
    assert lines(tmp_path / "set", "wav.scp") == [f"long {path}"]
    assert datadir.read(tmp_path / "set") == rows and not faults(tmp_path / "set")


def test_files_that_are_no_longer_true_disappear(tmp_path: Path, made: Path) -> None:
    (made / "feats.scp").write_text("old x.ark:1\n")
    (made / "notes.md").write_text("kept")
    datadir.write(made, [replace(row, labels={}) for row in three(tmp_path / "audio")])
    assert set(contents(made)) == {"wav.scp", "text", "utt2spk", "spk2utt", "utt2dur", "notes.md"}


def test_only_wav_scp_is_indispensable(tmp_path: Path) -> None:
    (tmp_path / "wav.scp").write_text(
        f"b {save_audio(tmp_path / 'b.wav', 0.25)}\na {save_audio(tmp_path / 'a.wav')}\n"
    )
    first, second = datadir.read(tmp_path)
    assert (first.id, first.text, first.speaker, first.duration) == ("a", "", "a", 1.0)
    assert (second.id, second.duration) == ("b", 0.25)


def test_a_label_of_a_speaker_holds_for_all_its_utterances_unless_they_say_otherwise(
    made: Path,
) -> None:
    (made / "spk2accent").write_text("ann Irish\nbob Welsh\n")
    assert [row.labels["accent"] for row in datadir.read(made)] == ["Scots", "Scots", "Welsh"]


def test_relative_audio_starts_at_the_base(tmp_path: Path) -> None:
    save_audio(tmp_path / "corpus" / "audio" / "a.wav", 0.5)
    (tmp_path / "corpus" / "set").mkdir()
    (tmp_path / "corpus" / "set" / "wav.scp").write_text("a audio/a.wav\nb cat audio/a.wav |\n")
    found = datadir.read(tmp_path / "corpus" / "set", base=tmp_path / "corpus", measure=False)
    assert [row.audio for row in found] == [
        str(tmp_path / "corpus" / "audio" / "a.wav"),
        "cat audio/a.wav |",
    ]
    assert math.isnan(found[0].duration)


def test_archives_of_a_moved_folder_are_found_beside_feats_scp(tmp_path: Path) -> None:
    (tmp_path / "feats.1.ark").touch()
    (tmp_path / "wav.scp").write_text("a a.wav\nb b.wav\n")
    (tmp_path / "utt2dur").write_text("a 1\nb 1\n")
    (tmp_path / "feats.scp").write_text("a gone/dump/feats.1.ark:2\nb gone/dump/feats.2.ark:2\n")
    found = [row.features for row in datadir.read(tmp_path)]
    assert found == [f"{tmp_path}/feats.1.ark:2", "gone/dump/feats.2.ark:2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "a b"}, "id 'a b' must be a single word"),
        ({"speaker": ""}, "speaker '' must be a single word"),
        ({"text": "two\nlines"}, "transcript contains a line break"),
        ({"duration": math.nan}, "nan s"),
        ({"duration": 0.0}, "0.0 s"),
        ({"labels": {"accent": ""}}, "must not be empty"),
        ({"audio": " "}, "must not be empty"),
    ],
)
def test_what_the_files_cannot_hold_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    good = Utterance(id="a", audio="a.wav", duration=1.0, speaker="s")
    with pytest.raises(UserError, match=message):
        datadir.write(tmp_path / "set", [replace(good, **change)])
    assert not (tmp_path / "set").exists()


def test_an_id_or_a_recording_given_twice_is_refused(tmp_path: Path) -> None:
    good = Utterance(id="a", audio="a.wav", duration=1.0, speaker="s", recording="r")
    with pytest.raises(UserError, match="'a' occurs twice"):
        datadir.write(tmp_path, [good, good])
    with pytest.raises(UserError, match="recording 'r' has two audio files: 'a.wav' and 'b.wav'"):
        datadir.write(tmp_path, [good, replace(good, id="b", audio="b.wav")])


def test_a_folder_whose_files_contradict_each_other_is_not_read(made: Path) -> None:
    edit(made, "text", "bob-1", "bob-9")
    with pytest.raises(UserError, match=r"text.*missing \(bob-1\).*1 more"):
        datadir.read(made)


def test_audio_that_cannot_be_measured_is_named(made: Path) -> None:
    (made / "utt2dur").unlink()
    (made.parent / "audio" / "2.wav").unlink()
    with pytest.raises(
        UserError,
        match="no file gives the length of 1 utterance, and .*; first ann-2: .*: no such",
    ):
        datadir.read(made)


def test_unsorted_files_are_read_all_the_same(made: Path) -> None:
    expected = datadir.read(made)
    reverse(made)
    assert datadir.read(made) == expected


def test_a_writer_takes_utterances_in_any_order(tmp_path: Path) -> None:
    some = Utterance(id="", audio="", duration=1.0, speaker="")
    rows = [
        replace(some, id=f"u{n:02}", audio=f"{n}.wav", speaker=f"s{n % 3}", text=f"T {n}")
        for n in range(20)
    ]
    datadir.write(tmp_path / "sorted", rows)
    random.Random(1).shuffle(rows)
    with datadir.Writer(tmp_path / "shuffled", segmented=False) as writer:
        for row in rows:
            writer.add(row)
    assert contents(tmp_path / "shuffled") == contents(tmp_path / "sorted")
    assert lines(tmp_path / "sorted", "spk2utt")[1] == "s1 u01 u04 u07 u10 u13 u16 u19"


def test_a_writer_that_fails_leaves_the_folder_as_it_was(made: Path) -> None:
    before = contents(made)
    row = datadir.read(made)[0]
    with (
        pytest.raises(UserError, match="'ann-1' occurs twice"),
        datadir.Writer(made, segmented=False) as writer,
    ):
        writer.add(row)
        writer.add(row)
    assert contents(made) == before


# -- checking --------------------------------------------------------------


def test_a_valid_folder_has_no_problem(made: Path) -> None:
    assert not faults(made)
    (note,) = datadir.check(made)
    assert note.kind == "note" and "1 utterance with an empty transcript" in str(note)


def duplicate(folder: Path) -> None:
    with open(folder / "wav.scp", "a") as stream:
        stream.write("bob-1 other.wav\n")


def reverse(folder: Path) -> None:
    (folder / "utt2spk").write_text(
        "".join(f"{line}\n" for line in reversed(lines(folder, "utt2spk")))
    )


def with_segments(*rows: str):
    def add(folder: Path) -> None:
        (folder / "segments").write_text("".join(f"{row}\n" for row in rows))

    return add


def with_bytes(name: str, old: bytes, new: bytes):
    def change(folder: Path) -> None:
        content = (folder / name).read_bytes()
        assert old in content
        (folder / name).write_bytes(content.replace(old, new, 1))

    return change


def with_edit(name: str, old: str, new: str):
    return lambda folder: edit(folder, name, old, new)


def without_value(folder: Path) -> None:
    (folder / "wav.scp").write_text("\n".join([*lines(folder, "wav.scp")[:2], "bob-1"]) + "\n")


BROKEN = {
    "unsorted": (
        reverse,
        r"utt2spk:2: not sorted \(LC_ALL=C\) in 2 lines \(ann-2, ann-1\); " r".*--fix` sorts",
    ),
    "duplicate": (
        duplicate,
        r"wav.scp:4: 1 line with a different value for an earlier id \(bob-1\); .*--fix",
    ),
    "text without audio": (
        with_edit("text", "bob-1 ", "zoe-1 A\nbob-1 "),
        r"text:3: 1 utterance without audio \(zoe-1\)",
    ),
    "audio without text": (
        with_edit("text", "ann-2\n", ""),
        r"text: 1 utterance of wav.scp missing \(ann-2\); .* drops",
    ),
    "missing wav": (
        with_edit("wav.scp", "3.wav", "4.wav"),
        r"wav.scp:3: 1 recording whose file does not exist, first .*4",
    ),
    "no wav.scp": (lambda folder: (folder / "wav.scp").unlink(), "there is no wav.scp"),
    "fields of wav.scp": (without_value, r"wav.scp:3: 1 line not of the form <id> <value> \(bob-1"),
    "fields of utt2spk": (
        with_edit("utt2spk", " bob", " bob x"),
        r"utt2spk:3: 1 line not of the " r"form <id> <speaker>",
    ),
    "duration of 0": (
        with_edit("utt2dur", " 2\n", " 0\n"),
        r"utt2dur:3: 1 line not of the form <id> <seconds greater than 0>",
    ),
    "duration in words": (
        with_edit("utt2dur", " 2\n", " two\n"),
        r"utt2dur:3: 1 line not of the " r"form",
    ),
    "utt2dur lacks one": (
        with_edit("utt2dur", "bob-1 2\n", ""),
        r"utt2dur: 1 utterance .* " r"missing .*removes the file",
    ),
    "spk2utt": (
        with_edit("spk2utt", " ann-2", ""),
        r"spk2utt:1: 1 speaker whose utterances differ from utt2spk \(ann\)",
    ),
    "label of nobody": (
        with_edit("utt2style", "bob-1", "zoe-1"),
        r"utt2style:3: 1 utterance " r"without audio \(zoe-1\)",
    ),
    "not UTF-8": (
        with_bytes("text", "你".encode(), b"\xc4\xe3"),
        r"text:3: 1 line not in UTF-8; " r"`iconv",
    ),
    "CR LF": (with_bytes("text", b"WORLD\n", b"WORLD\r\n"), r"text:1: 1 line ending in CR LF"),
    "BOM": (
        with_bytes("text", b"ann-1", b"\xef\xbb\xbfann-1"),
        r"text:1: the file starts with a " r"byte-order mark",
    ),
    "empty line": (with_edit("text", "ann-2\n", "ann-2\n\n"), r"text:3: 1 line without an id"),
    "empty file": (
        lambda folder: (folder / "utt2accent").write_text(""),
        r"utt2accent:1: the file is empty",
    ),
    "segment end": (
        with_segments("ann-1 bob-1 0.5 0.5"),
        r"segments:1: 1 line not of the form .* with a start of at least 0",
    ),
    "segment recording": (
        with_segments("ann-1 zoe 0 1"),
        r"segments:1: 1 utterance of recordings not in wav.scp",
    ),
    "segment too long": (
        with_segments("ann-1 bob-1 0 2.5"),
        r"segments:1: 1 segment ending after " r"the .* \(ann-1\)",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_each_fault_is_found_with_its_line_and_what_mends_it(made: Path, what: str) -> None:
    damage, message = BROKEN[what]
    damage(made)
    assert any(re.search(message, fault) for fault in faults(made)), faults(made)


def test_all_faults_are_told_at_once(made: Path) -> None:
    reverse(made)
    duplicate(made)
    edit(made, "utt2dur", " 2\n", " 0\n")
    edit(made, "wav.scp", "2.wav", "9.wav")
    assert len(faults(made)) == 4


# -- mending ---------------------------------------------------------------

NOTHING_LEFT = {"no wav.scp", "not UTF-8", "segment end", "segment recording", "segment too long"}


@pytest.mark.parametrize("what", [what for what in BROKEN if what not in NOTHING_LEFT])
def test_a_mended_folder_is_valid_and_readable(made: Path, what: str) -> None:
    BROKEN[what][0](made)
    report = datadir.fix(made)
    assert not faults(made), str(report)
    assert len(datadir.read(made)) == report.kept
    assert report.changed


def test_a_report_says_what_was_dropped_and_why(made: Path) -> None:
    edit(made, "text", "bob-1 ", "zoe-1 A\nbob-1 ")
    edit(made, "wav.scp", "2.wav", "9.wav")
    report = datadir.fix(made)
    assert str(report).startswith("kept 2 utterances out of 3\n")
    assert report.dropped == {
        "the audio file does not exist": ["ann-2"],
        "a transcript without audio": ["zoe-1"],
    }
    assert lines(made, "spk2utt") == ["ann ann-1", "bob bob-1"]


def test_files_that_were_mended_are_kept_in_the_backup(made: Path) -> None:
    before = contents(made)
    reverse(made)
    broken = contents(made)
    assert datadir.fix(made).changed == ["utt2spk"]
    assert contents(made) == before and contents(made / ".backup") == broken


def test_a_folder_without_fault_is_left_alone(made: Path) -> None:
    before = contents(made)
    report = datadir.fix(made)
    assert report.kept == report.total == 3 and not report.changed
    assert contents(made) == before and not (made / ".backup").exists()


def test_segments_outside_their_recording_are_dropped_with_recordings_nobody_needs(
    made: Path,
) -> None:
    with_segments("ann-1 bob-1 0 1", "ann-2 ann-1 0.5 1.5", "bob-1 zoe 0 1")(made)
    report = datadir.fix(made)
    assert report.dropped["no audio for its recording"] == ["bob-1"]
    assert report.dropped["the segment ends after the recording"] == ["ann-2"]
    assert [row.split()[0] for row in lines(made, "wav.scp")] == ["bob-1"] and not faults(made)


def test_nothing_is_changed_where_nothing_would_be_left_or_the_encoding_is_unknown(
    made: Path,
) -> None:
    edit(made, "wav.scp", str(made.parent), "/nowhere")
    before = contents(made)
    with pytest.raises(UserError, match="no utterance would be left, so nothing was changed"):
        datadir.fix(made)
    assert contents(made) == before
    with_bytes("text", "你".encode(), b"\xff")(made)
    with pytest.raises(UserError, match="not in UTF-8.*nothing was changed"):
        datadir.fix(made)
