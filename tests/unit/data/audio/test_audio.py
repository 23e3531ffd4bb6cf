from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import audio

RATE = 16000


def tone(seconds: float = 1.0, rate: int = RATE, hz: float = 440.0) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * hz / rate * np.arange(round(seconds * rate)))).astype(
        np.float32
    )


def save(path: Path, samples: np.ndarray, rate: int = RATE, **how: str) -> str:
    soundfile.write(path, samples, **{"samplerate": rate, **how})
    return str(path)


def dominant(samples: np.ndarray, rate: int = RATE) -> float:
    """The frequency with the most energy, in Hz."""
    return float(
        np.abs(np.fft.rfft(samples * np.hanning(len(samples)))).argmax() * rate / len(samples)
    )


@pytest.mark.parametrize(
    ("name", "how", "tolerance"),
    [
        ("a.wav", {}, 2**-15),  # one step of 16 bits
        ("a.flac", {}, 2**-15),
        ("a.ogg", {}, 0.05),  # lossy
        ("a.mp3", {}, 0.05),
        ("a.opus", {"format": "OGG", "subtype": "OPUS"}, 0.05),
    ],
)
def test_every_format_reads_as_written(
    tmp_path: Path, name: str, how: dict, tolerance: float
) -> None:
    path = save(tmp_path / name, tone(), **how)
    found = audio.read(path)
    assert found.dtype == np.float32 and found.shape == (RATE,)
    assert np.abs(found - tone())[800:-800].max() <= tolerance
    assert audio.info(path) == (RATE, 1, RATE)


def test_a_command_is_run_and_its_output_read(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone())
    np.testing.assert_array_equal(audio.read(f"cat {path} |"), audio.read(path))
    np.testing.assert_array_equal(
        audio.read(f"cat {path} |", 0.5, 0.25), audio.read(path, 0.5, 0.25)
    )
    assert audio.info(f"cat {path} | ") == (RATE, 1, RATE)


def test_a_stream_whose_header_does_not_know_its_length_is_read_whole(tmp_path: Path) -> None:
    content = bytearray(Path(save(tmp_path / "a.wav", tone())).read_bytes())
    size = content.index(b"data") + 4
    content[size : size + 4] = b"\xff\xff\xff\x7f"
    (tmp_path / "stream.wav").write_bytes(content)
    assert len(audio.read(f"cat {tmp_path / 'stream.wav'} |")) == RATE
    assert len(audio.read(str(tmp_path / "stream.wav"))) == RATE


def test_a_segment_is_cut_to_the_sample(tmp_path: Path) -> None:
    path = save(tmp_path / "a.flac", tone())
    np.testing.assert_array_equal(audio.read(path, 0.25, 0.5), audio.read(path)[4000:12000])
    np.testing.assert_array_equal(audio.read(path, 0.75), audio.read(path)[12000:])


def test_a_segment_may_exceed_its_recording_by_a_rounding_only(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone())
    assert len(audio.read(path, 0.5, 0.51)) == 8000
    with pytest.raises(
        audio.AudioError, match=r"the segment from 0.500 to 1.500 s .* which is " r"1.000 s long"
    ):
        audio.read(path, 0.5, 1.0)


def test_another_sampling_rate_is_resampled_unless_the_own_is_asked_for(tmp_path: Path) -> None:
    path = save(tmp_path / "a.wav", tone(rate=44100), 44100)
    assert len(audio.read(path)) == RATE and dominant(audio.read(path)) == pytest.approx(440, abs=2)
    assert len(audio.read(path, rate=None)) == 44100
    assert len(audio.read(path, rate=8000)) == 8000
    assert audio.load(path)[1] == 44100


@pytest.mark.parametrize("factor", [0.9, 1.1, 1.037])
def test_changing_the_speed_changes_length_and_pitch(factor: float) -> None:
    changed = audio.change_speed(tone(), factor)
    # the factor is rounded to two digits over two
    assert len(changed) == pytest.approx(RATE / factor, rel=2e-4)
    assert dominant(changed) == pytest.approx(440 * factor, abs=2)


def test_speed_one_and_the_same_rate_change_nothing() -> None:
    np.testing.assert_array_equal(audio.change_speed(tone(), 1.0), tone())
    np.testing.assert_array_equal(audio.resample(tone(), RATE, RATE), tone())


def test_a_speed_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="speed factor 0.001 is too small"):
        audio.change_speed(tone(), 0.001)


def cut(path: str, share: float) -> str:
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: int(len(content) * share)])
    return path


def refusals(folder: Path) -> dict[str, tuple[str, str]]:
    """What is wrong -> (audio, the sentence)."""
    nan = tone()
    nan[8000:8003] = np.nan
    stereo = save(folder / "stereo.wav", np.stack([tone(), tone()], axis=1))
    (folder / "bytes.wav").touch()
    (folder / "text.wav").write_text("no audio")
    noise = np.random.default_rng(0).standard_normal(RATE) * 0.1
    return {
        "missing": (str(folder / "gone.wav"), "no such file"),
        "missing, relative": ("gone.wav", r"no such file or directory \(relative paths start at "),
        "folder": (str(folder), "is a directory"),
        "empty file": (str(folder / "bytes.wav"), "the file is empty"),
        "no samples": (save(folder / "none.wav", tone()[:0]), "holds no samples"),
        "not audio": (str(folder / "text.wav"), "not audio"),
        "raw": (
            save(folder / "a.raw", tone(), format="RAW", samplerate=RATE, subtype="PCM_16"),
            "not audio",
        ),
        "truncated flac": (cut(save(folder / "cut.flac", noise), 0.5), "truncated"),
        "truncated wav": (
            cut(save(folder / "cut.wav", noise), 0.5),
            "truncated, the header promises 32000 bytes",
        ),
        "truncated mp3": (cut(save(folder / "cut.mp3", noise), 0.5), "truncated"),
        "rate of 1 Hz": (
            save(folder / "slow.wav", tone(), 1),
            "the sampling rate is 1 Hz, expected an integer from",
        ),
        "stereo": (
            stereo,
            re.escape(
                f"2 channels, expected 1; select one in wav.scp (`sox {stereo} -t wav - remix 1"
            ),
        ),
        "stereo pipe": (
            f"cat {stereo} |",
            re.escape(f"`cat {stereo} | sox -t wav - -t wav - remix 1 |`"),
        ),
        "NaN": (
            save(folder / "nan.wav", nan, subtype="FLOAT"),
            "3 of 16000 samples are NaN .* the first at 0.500 s",
        ),
        "stereo, a name with a space": (
            save(folder / "a b.wav", np.stack([tone()] * 2, 1)),
            re.escape("(`sox '/"),
        ),
        "16-bit numbers": (
            save(folder / "b.wav", tone() * 32768, subtype="FLOAT"),
            "samples reach 9830.*, expected",
        ),
        "failing command": ("echo dear user >&2; exit 3 |", "failed with status 3: dear user"),
        "failing first command": (
            f"cat {folder}/gone.wav | cat |",
            "failed with status 1: cat: .*No such file",
        ),
        "silent command": ("true |", "the command printed nothing"),
    }


def test_unusable_audio_is_refused_with_one_sentence(tmp_path: Path) -> None:
    for what, (path, sentence) in refusals(tmp_path).items():
        with pytest.raises(audio.AudioError) as caught:
            audio.read(path)
        message = str(caught.value)
        assert re.search(sentence, message) and message.startswith(path) and "\n" not in message, (
            what
        )


def test_a_name_that_leads_to_a_file_is_no_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("a.wav"), tone())
    Path("a.wav").rename("x;touch ran|")
    assert not audio.is_pipe("x;touch ran|")
    assert len(audio.read("x;touch ran|")) == len(audio.listen("x;touch ran|")[0]) == RATE
    assert len(audio.read(audio.speed_command("x;touch ran|", 0.8))) == RATE / 0.8
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", ["touch ran|", "x;touch ran |", "touch ran | "])
def test_a_path_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (audio.listen, lambda path: list(audio.blocks(path, 1.0)), audio.contents):
        with pytest.raises(
            audio.AudioError, match="no such file or directory; commands are only run from wav.scp"
        ):
            read(name)
    with pytest.raises(audio.AudioError, match="the command printed nothing|failed with status"):
        audio.read(name)  # as an entry of wav.scp
    assert Path("ran").exists()


@pytest.mark.parametrize(
    "name", ["a b.wav", "it's.wav", "a;touch ran.wav", "$(touch ran).wav", "-n.wav", "x| sox.wav"]
)
def test_odd_names_are_quoted_in_a_command_for_another_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save(Path("a.wav"), tone())
    Path("a.wav").rename(name)
    command = audio.speed_command(audio.speed_command(name, 1.25), 0.8)
    assert len(audio.read(command)) == RATE and audio.info(command) == (RATE, 1, RATE)
    assert not Path("ran").exists()


WHOLE_NUMBERS = {"uint8": 128, "int16": 1 << 15, "int32": 1 << 31}


@pytest.mark.parametrize("kind", WHOLE_NUMBERS)
def test_whole_numbers_have_the_scale_that_soundfile_gives_them(tmp_path: Path, kind: str) -> None:
    subtype = {"uint8": "PCM_U8", "int16": "PCM_16", "int32": "PCM_32"}[kind]
    path = save(tmp_path / "a.wav", tone(), subtype=subtype)
    floats = soundfile.read(path, dtype="float32")[0]
    scaled = np.round(floats.astype(np.float64) * WHOLE_NUMBERS[kind])
    whole = (scaled + (128 if kind == "uint8" else 0)).astype(kind)
    np.testing.assert_array_equal(audio.one_channel(whole), floats)


@pytest.mark.parametrize(
    ("samples", "sentence"),
    [
        *[
            ((tone() * 20).astype(kind), f"{kind}, expected floats")
            for kind in ("int8", "int64", "uint16", "uint32")
        ],
        (tone() > 0, "bool, expected floats"),
        (tone().astype(complex), "complex128, expected floats"),
        (
            tone().astype(np.float64) * 32768,
            r"samples reach 9830.*, expected values in \[-1, " r"1\]; if they are 16-bit",
        ),
        (np.round(tone() * 32768).astype(np.float32), "expected values in"),
        (
            np.round(tone() * 32768).astype(np.int32),
            "the dtype is int32 but all values fit in 16 bits; convert them to int16",
        ),
        (tone()[None], r"16000 channels of 1 samples; expected an array \(T, channels\)"),
        (np.zeros((2, 2, 2)), "expected samples"),
        (np.zeros(0), "got an array of shape"),
        (np.zeros((0, 2)), "holds no samples"),
        (np.float64(0.1), "expected samples"),
    ],
)
def test_numbers_whose_scale_cannot_be_right_are_refused(
    samples: np.ndarray, sentence: str
) -> None:
    with pytest.raises(audio.AudioError, match=sentence):
        audio.one_channel(np.asarray(samples))


def test_numbers_of_any_precision_a_little_above_full_scale_and_silence_are_audio() -> None:
    for kind in (np.float16, np.float32, np.float64):
        assert np.abs(audio.one_channel((tone() * 4).astype(kind))).max() == pytest.approx(
            1.2, rel=0.01
        )
    for kind in WHOLE_NUMBERS:
        silence = np.full(100, 128 if kind == "uint8" else 0, kind)
        assert not audio.one_channel(silence).any()
    quiet = (np.arange(-50, 50) * 256).astype(np.int32)  # 24 bits in the upper bytes of 32
    assert audio.one_channel(quiet).max() == pytest.approx(49 / (1 << 23))


def test_durations_are_those_of_the_headers_and_errors_in_their_place(tmp_path: Path) -> None:
    good = save(tmp_path / "a.wav", tone(0.5))
    first, second = audio.durations([good, str(tmp_path / "gone.wav")])
    assert first == 0.5 and isinstance(second, audio.AudioError)


# -- Kaldi archives, odd names ------------------------------------------------


def archive(folder: Path) -> dict[str, str]:
    """As Kaldi's wav-copy and kaldiio write them: id -> reference."""
    content = Path(save(folder / "a.wav", tone())).read_bytes()
    packed = Path(save(folder / "a.flac", tone(0.5))).read_bytes()
    size = len(packed).to_bytes(4, "little")
    parts = {"wav": content, "audio": b"AUDIO\x04" + size + packed, "flac": packed}
    parts["mat"] = b"\0BFM \4\1\0\0\0"
    data, found = b"", {}
    for key, part in parts.items():
        data += f"{key} ".encode()
        found[key] = f"{folder}/wav.ark:{len(data)}"
        data += part
    (folder / "wav.ark").write_bytes(data)
    return found


def test_recordings_of_a_kaldi_archive_are_read(tmp_path: Path) -> None:
    found = archive(tmp_path)
    for key, seconds in (("wav", 1.0), ("audio", 0.5), ("flac", 0.5)):
        np.testing.assert_allclose(audio.read(found[key]), tone(seconds), atol=2**-15)
        assert audio.durations([found[key]]) == [seconds]
    np.testing.assert_array_equal(audio.read(found["wav"], 0.5), audio.read(found["wav"])[8000:])


@pytest.mark.parametrize("known", [True, False])
def test_a_flac_of_an_archive_is_read_to_its_own_end(tmp_path: Path, known: bool) -> None:
    packed = bytearray(Path(save(tmp_path / "a.flac", tone(0.5))).read_bytes())
    if not known:  # the largest frame, which the format lets a writer leave out
        packed[15:18] = bytes(3)
    behind = b"b " + bytes(packed) + bytes(1 << 20)
    (tmp_path / "wav.ark").write_bytes(b"a " + packed + behind)
    entry = f"{tmp_path}/wav.ark:2"
    with open(tmp_path / "wav.ark", "rb") as stream:
        read = audio._of_kaldi(entry, stream, 2)
    assert len(packed) <= len(read) < 2 * len(tone(0.5)) * 2
    np.testing.assert_allclose(audio.read(entry), tone(0.5), atol=2**-15)


def test_a_flac_of_an_archive_without_a_length_is_refused(tmp_path: Path) -> None:
    packed = bytearray(Path(save(tmp_path / "a.flac", tone(0.5))).read_bytes())
    packed[21] &= 0xF0  # the 36 bits of its samples, 0 where a pipe was written to
    packed[22:26] = bytes(4)
    (tmp_path / "wav.ark").write_bytes(b"a " + packed)
    with pytest.raises(audio.AudioError, match="does not say how long it is, so nothing says"):
        audio.read(f"{tmp_path}/wav.ark:2")


def test_what_is_no_recording_of_an_archive_is_said(tmp_path: Path) -> None:
    found = archive(tmp_path)
    with pytest.raises(audio.AudioError, match="has features there, expected a wav file"):
        audio.read(found["mat"])
    with pytest.raises(audio.AudioError, match="has no wav file there"):
        audio.read(f"{tmp_path}/wav.ark:1")
    cut(str(tmp_path / "wav.ark"), 0.3)
    with pytest.raises(audio.AudioError, match="truncated, the archive should have 32044 bytes"):
        audio.read(found["wav"])
    with pytest.raises(audio.AudioError, match="no such file"):
        audio.read(f"{tmp_path}/gone.ark:4")


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3"])
def test_a_name_that_is_not_utf_8_is_read(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, tone())
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xe9" + name.encode())
    os.rename(path, odd)
    assert len(audio.listen(odd)[0]) == pytest.approx(RATE, abs=1200)
    assert next(audio.blocks(odd, 0.1))[1] == RATE
