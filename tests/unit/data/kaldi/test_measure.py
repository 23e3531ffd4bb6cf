"""Lengths that no file tells: of a directory with wav.scp and text alone, and of segments that end
with -1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import corpus, describe, prepared
from asrtool.data.audio import check
from asrtool.data.config import BatchConfig, DataConfig
from asrtool.data.extraction import extract
from asrtool.data.kaldi import checks, datadir, ops
from asrtool.data.shards.packing import pack_audio
from asrtool.errors import UserError
from asrtool.log import logger

RATE = 16000
CONFIG = DataConfig(batch=BatchConfig(seconds=10))


def record(path: Path, samples: int = 20000) -> Path:
    soundfile.write(path, np.random.default_rng(samples).normal(0, 0.1, samples), RATE)
    return path


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    """wav.scp, with a file and a command, and text."""
    folder = tmp_path / "minimal"
    folder.mkdir()
    path = record(tmp_path / "1.wav")
    (folder / "wav.scp").write_text(f"u1 {path}\nu2 cat {record(tmp_path / '2.wav', 12345)} |\n")
    (folder / "text").write_text("u1 A B\nu2 A\n")
    return folder


@pytest.fixture(params=["-1", "-1.0", "-1.000"])
def to_end(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Two recordings, one of them a command, with segments that end with them at fractions of a
    sample.
    """
    folder = tmp_path / "to_end"
    folder.mkdir()
    (folder / "wav.scp").write_text(
        f"r1 {record(tmp_path / '1.wav')}\nr2 cat {record(tmp_path / '2.wav', 12345)} |\n"
    )
    end = request.param
    (folder / "segments").write_text(
        f"a-1 r1 0.0 0.5\na-2 r1 0.50003 {end}\na-3 r2 0 {end}\na-4 r2 0.333333 {end}\n"
    )
    (folder / "text").write_text("".join(f"a-{n} A\n" for n in (1, 2, 3, 4)))
    return folder


LENGTHS = {"a-1": 0.5, "a-2": 1.25 - 0.50003, "a-3": 12345 / RATE, "a-4": 12345 / RATE - 0.333333}


def faults(folder: Path) -> list[str]:
    return [str(problem) for problem in datadir.check(folder) if problem.kind != "note"]


# -- wav.scp and text alone ------------------------------------------------


def test_lengths_and_speakers_are_completed_and_said_once(minimal: Path, monkeypatch) -> None:
    said = []
    monkeypatch.setattr(logger, "info", lambda text, *values: said.append(text % values))
    rows = datadir.read(minimal)
    assert [(row.id, row.speaker, row.duration) for row in rows] == [
        ("u1", "u1", 1.25),
        ("u2", "u2", 12345 / RATE),
    ]
    (sentence,) = said
    assert (
        "no file (utt2dur) gives the length of 2 utterances; it is measured from the audio; "
        "1 command"
    ) in sentence


def test_it_is_valid_and_its_hours_are_counted(minimal: Path) -> None:
    assert checks.faultless(minimal) is not None and not faults(minimal)
    assert not [problem for problem in check.check_audio(minimal) if problem.kind != "note"]
    assert math.isclose(sum(describe.describe(minimal).seconds), 1.25 + 12345 / RATE)


def test_copies_and_parts_are_made_of_it(minimal: Path, tmp_path: Path) -> None:
    ops.combine(tmp_path / "both", [minimal])
    assert ops.choose(ops.Source(minimal), 1, "shortest") == ["u2"]
    assert [len(datadir.read(part)) for part in ops.split(minimal, 2)] == [1, 1]
    ops.perturb_speed(minimal, tmp_path / "slow", 0.8)
    slow = [row.duration for row in datadir.read(tmp_path / "slow")]
    assert slow == pytest.approx([1.5625, 12345 / RATE / 0.8], abs=1e-4)


@pytest.mark.parametrize("kind", ["stored", "online"])
def test_stage_1_makes_its_own_features(minimal: Path, tmp_path: Path, kind: str) -> None:
    (minimal / "feats.scp").write_text("u1 others.ark:3\nu2 others.ark:99\n")
    (minimal / "utt2num_frames").write_text("u1 7\nu2 7\n")
    (tmp_path / "dump").mkdir()
    config = replace(CONFIG, features=kind)
    extract(minimal, config, tmp_path / "dump", final=tmp_path / "dump", training=True, nj=1)
    rows = datadir.read(tmp_path / "dump")
    assert [row.num_frames for row in rows] == [123, 75]
    assert all(
        "others" not in (row.features or "") and bool(row.features) == (kind == "stored")
        for row in rows
    )


def test_stage_1_and_shards_take_it(minimal: Path, tmp_path: Path) -> None:
    (tmp_path / "dump").mkdir()
    summary = extract(
        minimal, CONFIG, tmp_path / "dump", final=tmp_path / "dump", training=True, nj=1
    )
    assert summary.rows == 2 and not summary.skipped
    assert [row.num_frames for row in datadir.read(tmp_path / "dump")] == [123, 75]
    (tmp_path / "packed").mkdir()
    packed = pack_audio(
        minimal, tmp_path / "packed", final=tmp_path / "packed", megabytes=1, seed=0
    )
    assert packed.seconds == {"u1": 1.25, "u2": 12345 / RATE}


@pytest.mark.parametrize("what", ["missing", "empty", "failing command"])
def test_what_cannot_be_measured_is_named(minimal: Path, tmp_path: Path, what: str) -> None:
    empty = record(tmp_path / "0.wav", 0)
    audio = {"missing": f"{tmp_path}/gone.wav", "empty": str(empty), "failing command": "false |"}[
        what
    ]
    with open(minimal / "wav.scp", "a") as stream:
        stream.write(f"u3 {audio}\n")
    with open(minimal / "text", "a") as stream:
        stream.write("u3 A\n")
    with pytest.raises(UserError, match="no file gives the length of 1 utterance, .*; first u3: "):
        datadir.read(minimal)
    rows, bad = datadir.complete(list(datadir.read(minimal, measure=False)))
    assert [row.id for row in rows] == ["u1", "u2"] and list(bad) == ["u3"]
    assert audio.rstrip(" |") in str(bad["u3"])


# -- to the end of the recording -------------------------------------------


def test_an_end_of_minus_1_is_that_of_the_recording(to_end: Path) -> None:
    assert checks.faultless(to_end) is not None and not faults(to_end)
    assert {row.id: row.duration for row in datadir.read(to_end)} == pytest.approx(LENGTHS)
    streamed = list(datadir.read(to_end, measure=False))
    assert {row.id: row.duration for row in datadir.complete(streamed)[0]} == pytest.approx(LENGTHS)
    (to_end / "text").write_text(
        "".join(reversed((to_end / "text").read_text().splitlines(keepends=True)))
    )
    assert {
        row.id: row.duration for row in datadir.read(to_end, measure=False)
    }.keys() == LENGTHS.keys()


def test_all_of_the_recording_is_read(to_end: Path, tmp_path: Path) -> None:
    assert not [problem for problem in check.check_audio(to_end) if problem.kind != "note"]
    (tmp_path / "dump").mkdir()
    config = replace(CONFIG, input="waveform")
    summary = extract(
        to_end, config, tmp_path / "dump", final=tmp_path / "dump", training=False, nj=1
    )
    assert not summary.skipped
    samples = {row.id: row.num_frames for row in datadir.read(tmp_path / "dump")}
    assert samples == {"a-1": 8000, "a-2": 20000 - 8000, "a-3": 12345, "a-4": 12345 - 5333}
    assert "-1" not in (tmp_path / "dump" / "segments").read_text().split()
    assert not faults(tmp_path / "dump")
    (tmp_path / "packed").mkdir()
    packed = pack_audio(to_end, tmp_path / "packed", final=tmp_path / "packed", megabytes=1, seed=0)
    assert packed.seconds == {key: value / RATE for key, value in samples.items()}


def test_copies_parts_and_counts_keep_the_end(to_end: Path, tmp_path: Path) -> None:
    assert math.isclose(sum(describe.describe(to_end).seconds), sum(LENGTHS.values()))
    assert describe.describe(to_end).sounds == describe.describe(to_end).sounds
    assert ops.Source(to_end).durations() == pytest.approx(LENGTHS)
    ops.perturb_speed(to_end, tmp_path / "slow", 0.5)
    slow = {row.id.removeprefix("sp0.5-"): row.duration for row in datadir.read(tmp_path / "slow")}
    assert slow == pytest.approx({key: 2 * value for key, value in LENGTHS.items()}, abs=1e-4)
    assert [len(datadir.read(part)) for part in ops.split(to_end, 2, "recording")] == [
        2,
        2,
    ]


def test_utt2dur_must_be_that_of_the_rest(to_end: Path) -> None:
    lines = {key: f"{key} {value:.4f}\n" for key, value in LENGTHS.items()}
    (to_end / "utt2dur").write_text("".join(lines.values()))
    assert checks.faultless(to_end) is not None and not faults(to_end)
    (to_end / "utt2dur").write_text("".join((lines | {"a-2": "a-2 0.25\n"}).values()))
    assert any(
        "utt2dur:2: 1 utterance whose duration differs from the segment's (a-2)" in fault
        for fault in faults(to_end)
    )
    # nothing of the recording is lost
    assert datadir.read(to_end)[1].duration == pytest.approx(LENGTHS["a-2"])
    datadir.fix(to_end)
    assert not (to_end / "utt2dur").exists() and not faults(to_end)


def test_reco2dur_may_be_rounded(to_end: Path) -> None:
    (to_end / "reco2dur").write_text("r1 1.2\nr2 0.8\n")
    assert {row.id: row.duration for row in datadir.read(to_end)} == pytest.approx(LENGTHS)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("r1 -0.5 -1", "1 line not of the form <id> <recording> <start> <end>"),
        ("r1 -1 -1", "1 line not of the form"),
        ("r1 0.5 -2", "1 line not of the form"),
        ("r1 0.5 -0.5", "1 line not of the form"),
        ("r1 0.5 0.5", "1 line not of the form"),
        ("r1 0.5 inf", "1 line not of the form"),
        ("r1 nan -1", "1 line not of the form"),
        ("r1 -1", "1 line not of the form"),
        ("r1 1.25 -1", "1 segment ending after the recording"),
        ("r1 7 -1", "1 segment ending after the recording"),
        ("r1 0.5 1.3", "1 segment ending after the recording"),
    ],
)
def test_any_other_end_that_does_not_fit_is_a_fault_with_its_line(
    to_end: Path, line: str, fault: str
) -> None:
    rows = (to_end / "segments").read_text().splitlines()
    (to_end / "segments").write_text("\n".join([rows[0], f"a-2 {line}", *rows[2:]]) + "\n")
    assert checks.faultless(to_end) is None
    assert any(f"{to_end}/segments:2: {fault}" in found for found in faults(to_end)), faults(to_end)
    assert datadir.fix(to_end).kept == 3 and not faults(to_end)


def test_a_start_behind_the_end_of_a_command_is_named(to_end: Path) -> None:
    rows = (to_end / "segments").read_text().splitlines()
    (to_end / "segments").write_text("\n".join([*rows[:3], "a-4 r2 9 -1"]) + "\n")
    with pytest.raises(
        UserError,
        match=r"first a-4: .* from 9.000 s to the end .*, " r"which is 0.772 s long",
    ):
        datadir.read(to_end)


def test_prepared_sets_take_both_forms(to_end: Path, minimal: Path) -> None:
    assert {row.id: row.duration for row in prepared.read(to_end).utterances} == pytest.approx(
        LENGTHS
    )
    assert [row.duration for row in prepared.read(minimal).utterances] == [1.25, 12345 / RATE]
    assert isinstance(prepared.read(minimal), corpus.CorpusSet)
