from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.bin import check_data
from asrtool.data.kaldi import datadir
from asrtool.types import Utterance

RATE = 16000


def save(path: Path, samples: np.ndarray, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16" if path.suffix == ".flac" else "FLOAT")
    return path


def noise(seconds: float = 1.0) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(round(seconds * RATE)).astype(np.float32) * 0.1


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A valid data directory, with relative audio paths that start at its parent."""
    names = [f"s-{n}" for n in range(10)]
    for name in names:
        save(tmp_path / "audio" / f"{name}.flac", noise())
    rows = [
        Utterance(id=name, audio=f"audio/{name}.flac", duration=1.0, text="A", speaker="s")
        for name in names
    ]
    datadir.write(tmp_path / "set", rows)
    return tmp_path / "set"


def run(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str]:
    """Exit status and output of the command."""
    try:
        check_data.main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr().out


def test_a_valid_folder_ends_with_the_line_that_kaldi_prints(
    made: Path, capsys: pytest.CaptureFixture
) -> None:
    assert run(capsys, made, "--base", made.parent) == (
        0,
        f"Successfully validated data-directory {made}\n",
    )


def test_every_folder_is_checked_and_one_fault_fails_the_command(
    made: Path, capsys: pytest.CaptureFixture
) -> None:
    status, output = run(capsys, made.parent / "gone", made, "--base", made.parent)
    assert status == 1
    assert (
        "gone: the folder does not exist" in output
        and (f"Successfully validated data-directory {made}") in output
    )


def test_mending_says_what_was_dropped_and_then_the_folder_is_valid(
    made: Path, capsys: pytest.CaptureFixture
) -> None:
    (made.parent / "audio" / "s-3.flac").unlink()
    status, output = run(capsys, made, "--base", made.parent)
    assert (
        status == 1
        and "wav.scp:4: 1 recording whose file does not exist" in output
        and "1 problem\n" in output
    )
    status, output = run(capsys, made, "--base", made.parent, "--fix")
    assert status == 0
    assert "kept 9 utterances out of 10\ndropped 1: the audio file does not exist (s-3)\n" in output
    assert output.endswith(f"Successfully validated data-directory {made}\n")


def test_what_cannot_be_mended_is_said_and_fails(made: Path, capsys: pytest.CaptureFixture) -> None:
    (made / "text").write_bytes(b"s-0 \xff\n")
    status, output = run(capsys, made, "--base", made.parent, "--fix")
    assert (
        status == 1 and "text:1: 1 line not in UTF-8" in output and "nothing was changed" in output
    )


def test_with_audio_every_unusable_file_is_named(made: Path, capsys: pytest.CaptureFixture) -> None:
    folder = made.parent / "audio"
    truncated = (folder / "s-0.flac").read_bytes()
    (folder / "s-0.flac").write_bytes(truncated[: len(truncated) // 2])
    (folder / "s-1.flac").write_bytes(b"")
    save(folder / "s-2.flac", np.stack([noise(), noise()], axis=1))
    save(folder / "s-3.flac", noise(0.5))
    save(folder / "s-4.flac", noise(), 8000)
    wav = (
        (made / "wav.scp").read_text().replace("s-5.flac", "s-5.wav").replace("s-6.flac", "s-6.wav")
    )
    (made / "wav.scp").write_text(wav)
    save(folder / "s-5.wav", np.full(RATE, np.nan, dtype=np.float32))
    save(folder / "s-6.wav", noise(0))
    status, output = run(capsys, made, "--base", made.parent, "--audio")
    assert status == 1
    expected = {
        "wav.scp:1: s-0: ": "truncated",
        "wav.scp:2: s-1: ": "empty",
        "wav.scp:3: s-2: ": "2 channels",
        "wav.scp:6: s-5: ": "NaN",
        "wav.scp:7: s-6: ": "no samples",
        "utt2dur:4: ": "2 utterances whose duration differs",
        "note: ": "1 utterance at 8000 Hz; stage 1 resamples to 16000 Hz",
    }
    lines = output.splitlines()
    for start, reason in expected.items():
        assert any(start in line and reason in line for line in lines), (start, output)
    assert len(lines) == len(expected) + 1 and lines[-1] == f"{made}: 6 problems"


def test_without_audio_files_are_not_opened(made: Path, capsys: pytest.CaptureFixture) -> None:
    (made.parent / "audio" / "s-1.flac").write_bytes(b"no audio")
    assert run(capsys, made, "--base", made.parent)[0] == 0


def test_segments_are_opened_one_by_one(made: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [
        Utterance(
            id=f"s-{n}",
            audio="audio/s-0.flac",
            duration=0.25,
            text="A",
            speaker="s",
            recording="r",
            start=n / 4,
        )
        for n in range(4)
    ]
    datadir.write(made, rows)
    status, output = run(capsys, made, "--base", made.parent, "--audio")
    assert (status, output) == (0, f"Successfully validated data-directory {made}\n")
