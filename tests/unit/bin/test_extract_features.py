from __future__ import annotations

import resource
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from asrtool.bin import extract_features
from asrtool.data import audio, extraction, features
from asrtool.data.fbank import Fbank, FbankConfig
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.system import stamp
from asrtool.types import Utterance

RATE = 16000
ROOT = Path(__file__).parents[3]
CONFIG = """
data: {batch: {seconds: 10}}
model: {type: hybrid, encoder: {type: conformer, num_layers: 1, dim: 16, num_heads: 2,
  ffn_dim: 16, kernel: 3}}
losses: {ctc: {type: ctc, weight: 1.0}}
optim: {lr: 1e-3, schedule: {type: cosine, warmup: 1}}
trainer: {epochs: 1}
"""
NUMBER = 24  # utterances: one may be skipped without being more than a tenth


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(round(seconds * RATE)) * 0.1).astype(
        np.float32
    )


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A folder with a config, audio, and the data directory `set`."""
    (tmp_path / "train.yaml").write_text(CONFIG)
    (tmp_path / "audio").mkdir()
    rows = []
    for n in range(NUMBER):
        path = tmp_path / "audio" / f"{n:02}.wav"
        soundfile.write(path, noise(0.3 + n / 100, n), RATE)
        rows.append(
            Utterance(
                id=f"{n % 2}-{n:02}",
                audio=str(path),
                duration=0.3 + n / 100,
                text=f"TEXT {n}",
                speaker=f"speaker{n % 2}",
                labels={"accent": "Welsh"},
            )
        )
    datadir.write(tmp_path / "set", rows)
    return tmp_path


def arguments(made: Path, *more: str, out: str = "out") -> list[str]:
    return [
        "--config",
        f"{made}/train.yaml",
        "--data",
        f"{made}/set",
        "--out",
        f"{made}/{out}",
        *more,
    ]


def extract(made: Path, *more: str, out: str = "out") -> list[Utterance]:
    extract_features.main(arguments(made, *more, out=out))
    return datadir.read(made / out)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the stamp, whose references must not depend on the folder's name."""
    return {
        path.name: path.read_bytes().replace(str(folder).encode(), b"") for path in folder.iterdir()
    }


def change_audio(made: Path, number: int, value: str) -> None:
    """Let another path or command stand in wav.scp."""
    path = f"{made}/audio/{number:02}.wav"
    text = (made / "set" / "wav.scp").read_text()
    assert path in text
    (made / "set" / "wav.scp").write_text(text.replace(path, value))


# -- what it writes --------------------------------------------------------


def test_the_folder_is_the_data_directory_with_features(made: Path) -> None:
    found = extract(made)
    for before, after in zip(datadir.read(made / "set"), found, strict=True):
        assert replace(after, features=None, num_frames=None, duration=before.duration) == before
        expected = Fbank(FbankConfig())(torch.from_numpy(audio.read(before.audio))).numpy()
        np.testing.assert_array_equal(features.read_features(after.features), expected)
        assert after.num_frames == len(expected)
    assert found[0].features == f"{made}/out/feats.1.ark:5"
    assert not (made / "out" / "cmvn.json").exists() and not (made / "out.tmp").exists()


def test_a_training_set_gets_speed_copies_and_statistics_over_them(made: Path) -> None:
    found = {
        row.id: row
        for row in extract(made, "--training", "--set", "data.augment.speeds=[0.9,1.0,1.1]")
    }
    assert len(found) == 3 * NUMBER
    copy, original = found["sp0.9-1-03"], found["1-03"]
    assert (copy.speaker, copy.text, copy.labels) == (
        "sp0.9-speaker1",
        original.text,
        original.labels,
    )
    assert copy.audio == f"sox {original.audio} -t wav - speed 0.9 |"
    assert copy.duration == pytest.approx(original.duration / 0.9, abs=1e-4)  # one sample
    expected = Fbank(FbankConfig())(
        torch.from_numpy(audio.change_speed(audio.read(original.audio), 0.9))
    ).numpy()
    np.testing.assert_array_equal(features.read_features(copy.features), expected)
    frames = np.concatenate([features.read_features(row.features) for row in found.values()])
    cmvn = features.Cmvn.load(made / "out" / "cmvn.json")
    assert cmvn.frames == len(frames)
    # six decimals in the file
    np.testing.assert_allclose(cmvn.mean, frames.mean(0, dtype=np.float64), atol=1e-5)
    np.testing.assert_allclose(cmvn.std, frames.std(0, dtype=np.float64), atol=1e-5)


def test_other_sets_get_no_speed_copies(made: Path) -> None:
    assert len(extract(made, "--set", "data.augment.speeds=[0.9,1.0,1.1]")) == NUMBER


def test_copies_of_segments_and_pipes_are_what_sox_would_make(made: Path) -> None:
    whole = Utterance(
        id="a-1",
        audio=f"cat {made}/audio/20.wav |",
        duration=0.225,
        speaker="a",
        recording="r",
        start=0.18,
    )
    datadir.write(made / "set", [whole])
    copy = extract(made, "--training", "--set", "data.augment.speeds=[0.9]")[0]
    assert (copy.id, copy.recording) == ("sp0.9-a-1", "sp0.9-r")
    assert (copy.start, copy.duration) == (pytest.approx(0.2), pytest.approx(0.25))
    assert copy.audio == f"cat {made}/audio/20.wav | sox -t wav - -t wav - speed 0.9 |"


def test_online_features_get_lengths_and_statistics_only(made: Path) -> None:
    stored = extract(made, "--training")
    online = extract(
        made,
        "--training",
        "--set",
        "data.features=online data.augment.speeds=[0.9,1.1]",
        out="online",
    )
    assert [row.num_frames for row in online] == [row.num_frames for row in stored]
    assert not any(row.features for row in online) and not list((made / "online").glob("*.ark"))
    assert (made / "online" / "cmvn.json").read_bytes() == (made / "out" / "cmvn.json").read_bytes()


def test_waveforms_get_their_number_of_samples(made: Path) -> None:
    found = extract(made, "--training", "--set", "data.input=waveform")
    assert [row.num_frames for row in found] == [round(row.duration * RATE) for row in found]
    assert not list((made / "out").glob("*.ark")) and not (made / "out" / "cmvn.json").exists()


def test_dithered_features_are_the_same_each_time(made: Path) -> None:
    once, again = (
        extract(made, "--set", "data.fbank.dither=1.0", out=out) for out in ("once", "again")
    )
    assert contents(made / "once") == contents(made / "again")
    plain = extract(made, out="plain")[0]
    assert not np.array_equal(
        features.read_features(once[0].features), features.read_features(plain.features)
    )


def test_processes_and_one_process_write_the_same_bytes(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "SHARD", 7)
    for out, nj in (("one", "1"), ("two", "2")):
        extract(made, "--training", "--nj", nj, out=out)
    assert contents(made / "one") == contents(made / "two")
    assert len(list((made / "two").glob("feats.*.ark"))) == 4


# -- bad input -------------------------------------------------------------


BAD = {
    "missing": (lambda path: path.unlink(), "no such file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-4000]), "truncated"),
    "empty": (lambda path: path.write_bytes(b""), "the file is empty"),
    "no samples": (lambda path: soundfile.write(path, noise(0), RATE), "holds no samples"),
    "stereo": (
        lambda path: soundfile.write(path, np.zeros((RATE, 2)), RATE),
        "2 channels, expected 1",
    ),
    "NaN": (
        lambda path: soundfile.write(path, np.full(RATE, np.nan), RATE, subtype="FLOAT"),
        "NaN or infinite",
    ),
    "shorter than a frame": (
        lambda path: soundfile.write(path, noise(0.02), RATE),
        "20.0 ms of audio are too short for one",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_an_unusable_utterance_is_named_and_the_rest_goes_on(
    made: Path, what: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # it would send the log past pytest
    monkeypatch.setattr(extract_features, "set_up", lambda: None)
    damage, reason = BAD[what]
    damage(made / "audio" / "05.wav")
    with caplog.at_level("INFO", logger="asrtool"):
        found = extract(made, "--training")
    assert [row.id for row in found] == [
        row.id for row in datadir.read(made / "set") if row.id != "1-05"
    ]
    (line,) = (made / "out" / "skipped.txt").read_text().splitlines()
    assert line.startswith("1-05 ") and reason in line
    assert "left out 1-05: " in caplog.text and f"left out 1 of {NUMBER} utterances" in caplog.text


def test_another_sampling_rate_is_resampled_and_counted(
    made: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract_features, "set_up", lambda: None)
    for n in (3, 4):
        soundfile.write(made / "audio" / f"{n:02}.wav", noise(1.0), 8000)
    with caplog.at_level("INFO", logger="asrtool"):
        found = {row.id: row for row in extract(made)}
    assert found["1-03"].duration == 2.0 and found["1-03"].num_frames == 198
    assert "2 utterances resampled from 8000 Hz" in caplog.text


def test_too_many_unusable_utterances_stop_the_stage(made: Path) -> None:
    for n in range(3):
        (made / "audio" / f"{n:02}.wav").unlink()
    with pytest.raises(
        UserError,
        match=f"3 of {NUMBER} utterances cannot be used, first 0-00: .*--audio`",
    ):
        extract(made)
    assert not (made / "out").exists()


def test_faults_of_the_data_directory_stop_the_stage(made: Path) -> None:
    with open(made / "set" / "text", "a") as stream:
        stream.write("zoe-1 TEXT\n")
    with pytest.raises(
        UserError, match=r"text:25: 1 utterance without audio " r"\(zoe-1\); .*--fix"
    ):
        extract(made)
    assert not (made / "out").exists()


def test_unsorted_files_are_no_fault(made: Path) -> None:
    expected = extract(made)
    lines = (made / "set" / "wav.scp").read_text().splitlines(keepends=True)
    (made / "set" / "wav.scp").write_text("".join(reversed(lines)))
    assert extract(made) == expected


# -- again, interrupted, full ----------------------------------------------


def test_nothing_is_done_twice_unless_something_changed_or_it_is_forced(made: Path) -> None:
    extract(made)
    archive = made / "out" / "feats.1.ark"

    def is_made_again(*more: str) -> bool:
        before = archive.stat().st_ino
        extract(made, *more)
        return archive.stat().st_ino != before

    assert not is_made_again() and not is_made_again("--nj", "2")
    assert not is_made_again("--set", "data.workers=0 trainer.epochs=3")
    assert (
        is_made_again("--force")
        and is_made_again("--set", "data.fbank.low_hz=60")
        and is_made_again("--training")
    )
    (made / "set" / "text").write_text(
        (made / "set" / "text").read_text().replace("TEXT 3", "WORD")
    )
    assert is_made_again("--training")


def killer(made: Path, signal_name: str) -> str:
    """A command for wav.scp that kills the process that reads it, the first time."""
    return (
        f"test -e {made}/killed || {{ touch {made}/killed; kill -{signal_name} $PPID; }}; cat "
        f"{made}/audio/15.wav |"
    )


def test_a_killed_run_leaves_nothing_finished_and_the_next_one_gives_the_same_bytes(
    made: Path,
) -> None:
    change_audio(made, 15, killer(made, "KILL"))
    command = [sys.executable, "-m", "asrtool.bin.extract_features", *arguments(made, "--training")]
    assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == -signal.SIGKILL
    assert (made / "out.tmp").exists() and not (made / "out").exists()
    extract(made, "--training")
    extract(made, "--training", out="undisturbed")
    assert (
        contents(made / "out") == contents(made / "undisturbed") and not (made / "out.tmp").exists()
    )


def test_ctrl_c_leaves_nothing_finished_and_the_next_run_gives_the_same_bytes(made: Path) -> None:
    change_audio(made, 15, killer(made, "INT"))
    with pytest.raises(KeyboardInterrupt):
        extract(made)
    assert not (made / "out").exists()
    extract(made)
    extract(made, out="undisturbed")
    assert contents(made / "out") == contents(made / "undisturbed")


def test_a_killed_worker_ends_the_stage_with_one_sentence(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "SHARD", 12)
    change_audio(made, 15, killer(made, "KILL"))
    with pytest.raises(UserError, match="a worker process was killed"):
        extract(made, "--nj", "2")
    assert not (made / "out").exists()


def test_a_full_disk_is_one_sentence_and_leaves_nothing(made: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))  # a file may not grow beyond that
    try:
        with pytest.raises(
            stamp.StageError,
            match=f"{made}/out: file too large; free some disk space, then run the same "
            "command again",
        ):
            extract(made)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (made / "out").exists() and not (made / "out.tmp").exists()
    assert len(extract(made)) == NUMBER


# -- the command -----------------------------------------------------------


def test_phases_that_want_different_features_are_refused(made: Path) -> None:
    (made / "train.yaml").write_text(CONFIG + "phases: {one: {}, two: {data: {input: waveform}}}\n")
    with pytest.raises(UserError, match=r"different features \(one: fbank80, " r"two: waveform\)"):
        extract(made)


def test_a_number_of_processes_below_1_is_refused(
    made: Path, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        extract(made, "--nj", "0")
    assert "--nj is 0" in capsys.readouterr().err
