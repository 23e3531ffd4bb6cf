"""Formats that libsndfile does not read."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import audio
from asrtool.data.audio import foreign
from asrtool.data.shards import packing
from asrtool.types import Utterance

RATE = 16000
TONE = (0.3 * np.sin(2 * np.pi * 440 / RATE * np.arange(RATE))).astype(np.float32)


def wav(samples: np.ndarray = TONE, codec: int | None = None) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, RATE, format="WAV")
    data = stream.getvalue()
    return data if codec is None else data[:20] + codec.to_bytes(2, "little") + data[22:]


def sphere(coding: str) -> bytes:
    head = f"NIST_1A\n   1024\nsample_count -i 16000\nsample_coding -s{len(coding)} {coding}\n"
    return (head + "end_head\n").encode().ljust(1024) + bytes(64)


HEADS = {  # the beginning of a file -> what the message calls it
    "m4a": (b"\0\0\0\x1cftypM4A \0\0\2\0isom", "MPEG-4"),
    "mov": (b"\0\0\0\x14ftypqt  \0\0\2\0", "MPEG-4"),
    "3gp": (b"\0\0\0\x1cftyp3gp4\0\0\2\0", "3GPP"),
    "webm": (b"\x1aE\xdf\xa3\x9fB\x86\x81\1B\xf7\x81\1", "webm"),
    "amr": (b"#!AMR\n<O\x15yP", "AMR"),
    "amr-wb": (b"#!AMR-WB\n<O\x15yP", "AMR"),
    "aac": (b"\xff\xf1`@F\x7f\xfc\xdc\0Lavc", "AAC"),
    "wma": (b"0&\xb2u\x8ef\xcf\x11\xa6\xd9\0\xaa", "wma"),
    "avi": (b"RIFF\xecP\0\0AVI LIST", "AVI"),
    "wv": (b"wvpk\x0c\3\0\0\x10\4\0\0", "WavPack"),
    "speex": (b"OggS\0\2" + bytes(22) + b"Speex   1.2", "Speex"),
    "wav with a codec": (wav(codec=0x28F), "the codec 0x028f"),
}


@pytest.fixture
def nothing_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_pyav", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")


@pytest.mark.parametrize("name", HEADS)
def test_a_file_of_another_format_is_named_and_not_called_damaged(
    tmp_path: Path, nothing_decodes: None, name: str
) -> None:
    head, called = HEADS[name]
    (tmp_path / "it's").write_bytes(head.ljust(2048, b"\7"))
    with pytest.raises(audio.AudioError) as caught:
        audio.load(str(tmp_path / "it's"))
    said = str(caught.value)
    assert called in said and "damaged" not in said and "pip install av" in said
    quoted = f"'{tmp_path}/it'\"'\"'s'"
    assert f"`ffmpeg -v error -i {quoted} -f wav - |`" in said


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (sphere("pcm,embedded-shorten-v2.00"), r"by shorten, .*`sph2pipe -f wav \S+ \|`"),
        (gzip.compress(wav()), r"by gzip, .*`gunzip -c \S+ \|`"),
        (b"BZh91AY&SY", r"by bzip2, .*`bzip2 -dc \S+ \|`"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>", "a web page"),
    ],
)
def test_what_no_decoder_reads_is_named_too(tmp_path: Path, data: bytes, expected: str) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(audio.AudioError, match=expected) as caught:
        audio.load(str(tmp_path / "a"))
    assert "damaged" not in str(caught.value) and "pip install" not in str(caught.value)


def test_the_output_of_a_command_is_named_too(
    tmp_path: Path, nothing_decodes: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(HEADS["m4a"][0].ljust(2048))
    monkeypatch.setattr(audio, "_run", lambda command: (tmp_path / "a").read_bytes())
    with pytest.raises(audio.AudioError, match=r"`cat \S+ \| ffmpeg -v error -i - -f wav - \|`"):
        audio.load(f"cat {tmp_path}/a |")


@pytest.mark.parametrize("data", [wav(), sphere("pcm"), sphere("ulaw"), b"\xff\xfb\x90\x64"])
def test_what_libsndfile_reads_stays_its_own(data: bytes) -> None:
    assert foreign.detect(io.BytesIO(data), len(data)) is None


def test_mp3_inside_wav_is_read_to_its_end(tmp_path: Path) -> None:
    """The header's number of samples is a guess."""
    stream = io.BytesIO()
    soundfile.write(stream, TONE, RATE, format="MP3")
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 4000, 1, 0, 12, 1, 2, 144, 1, 1393)
    data = stream.getvalue()
    chunks = [(b"fmt ", form), (b"fact", struct.pack("<I", 2 * RATE)), (b"data", data)]
    body = b"WAVE" + b"".join(
        name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2)
        for name, content in chunks
    )
    (tmp_path / "a.wav").write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert len(audio.load(str(tmp_path / "a.wav"))[0]) >= RATE
    assert audio.durations([str(tmp_path / "a.wav")])[0] == pytest.approx(1.0, abs=0.15)


# -- PyAV ------------------------------------------------------------------


def encode(
    path: Path, codec: str, container: str, samples: np.ndarray = TONE, channels: int = 1
) -> str:
    av = pytest.importorskip("av")
    layout = "mono" if channels == 1 else "stereo"
    with av.open(str(path), "w", format=container) as output:
        track = output.add_stream(codec, rate=RATE, layout=layout)
        frame = av.AudioFrame.from_ndarray(
            np.repeat((samples * 32767).astype(np.int16), channels)[None], "s16", layout
        )
        frame.sample_rate = RATE
        track.codec_context.open()  # which tells the size of its frames
        convert = av.AudioResampler(track.format, layout, track.rate, track.frame_size or None)
        for source in (frame, None):
            for part in convert.resample(source):
                output.mux(track.encode(part))
        output.mux(track.encode(None))
    return str(path)


@pytest.mark.parametrize(
    ("codec", "container", "tolerance"),
    [("aac", "mp4", 0.15), ("aac", "adts", 0.15), ("pcm_s16le", "matroska", 0.0)],
)
def test_pyav_reads_other_containers(
    tmp_path: Path, codec: str, container: str, tolerance: float
) -> None:
    path = encode(tmp_path / "a", codec, container)
    samples, rate = audio.load(path)
    assert rate == RATE and samples.dtype == np.float32
    assert len(samples) / rate == pytest.approx(1.0, abs=tolerance + 1e-9)
    spectrum = np.abs(np.fft.rfft(samples[:RATE] * np.hanning(RATE)))
    assert spectrum.argmax() == pytest.approx(440, abs=2)
    assert audio.info(path) == (RATE, 1, len(samples))
    np.testing.assert_array_equal(audio.decode(Path(path).read_bytes(), "x")[0], samples)
    np.testing.assert_array_equal(audio.load(path, 0.25, 0.5)[0], samples[4000:12000])
    pieces = [piece for piece, _ in audio.blocks(path, 0.1)]
    np.testing.assert_array_equal(np.concatenate(pieces), samples)
    assert {len(piece) for piece in pieces[:-1]} == {1600}


def test_channels_of_other_containers_are_kept_apart(tmp_path: Path) -> None:
    path = encode(tmp_path / "a", "pcm_s16le", "matroska", channels=2)
    with pytest.raises(audio.AudioError, match="2 channels, expected 1"):
        audio.load(path)
    np.testing.assert_allclose(audio.listen(path, 1)[0], TONE, atol=1e-4)


@pytest.mark.parametrize(("codec", "container"), [("aac", "mp4"), ("pcm_s16le", "matroska")])
def test_truncated_containers_are_refused(tmp_path: Path, codec: str, container: str) -> None:
    noise = np.random.default_rng(0).uniform(-0.3, 0.3, 5 * RATE).astype(np.float32)
    path = Path(encode(tmp_path / "a", codec, container, noise))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(audio.AudioError, match="truncated|cannot be read"):
        audio.load(str(path))


def test_shards_hold_what_others_can_read(tmp_path: Path) -> None:
    path = encode(tmp_path / "a", "aac", "mp4")
    utterance = Utterance(id="a", audio=path, duration=1.0, text="A", speaker="a")
    data, kind, seconds = packing.audio_content(utterance)
    assert kind == "flac" and seconds == pytest.approx(1.0, abs=0.15)
    np.testing.assert_allclose(audio.decode(data, "a")[0], audio.load(path)[0], atol=1e-4)


# -- ffmpeg ----------------------------------------------------------------

FFMPEG = """#!{python}
import sys
assert sys.argv[sys.argv.index("-i") + 1].startswith("file:/"), sys.argv
sys.stdout.buffer.write(open({output!r}, "rb").read())
sys.stderr.write({errors!r})
sys.exit({status})
"""


def fake_ffmpeg(
    folder: Path, monkeypatch: pytest.MonkeyPatch, errors: str = "", status: int = 0
) -> str:
    """On the PATH: prints a wav file of unknown length. Returns an m4a file for it."""
    stream = io.BytesIO()
    soundfile.write(stream, TONE, RATE, format="WAV", subtype="FLOAT")
    data = bytearray(stream.getvalue())
    place = data.index(b"data") + 4
    data[place : place + 4] = b"\xff" * 4
    (folder / "output.wav").write_bytes(data)
    (folder / "ffmpeg").write_text(
        FFMPEG.format(
            python=sys.executable, output=str(folder / "output.wav"), errors=errors, status=status
        )
    )
    os.chmod(folder / "ffmpeg", stat.S_IRWXU)
    monkeypatch.setattr(foreign, "_pyav", lambda: None)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    (folder / "a.m4a").write_bytes(HEADS["m4a"][0].ljust(2048))
    return str(folder / "a.m4a")


def test_ffmpeg_reads_where_pyav_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_ffmpeg(tmp_path, monkeypatch)
    samples, rate = audio.load(path)
    assert rate == RATE
    np.testing.assert_array_equal(samples, TONE)
    np.testing.assert_array_equal(audio.load(path, 0.25, 0.5)[0], TONE[4000:12000])
    np.testing.assert_array_equal(audio.decode(Path(path).read_bytes(), "x")[0], TONE)
    next(audio.blocks(path, 0.1))  # who stops early leaves no process that waits


@pytest.mark.parametrize(
    ("errors", "status", "expected"),
    [
        ("[mov @ 0x1] [x @ 0x2] moov atom not found\nmore\n", 1, r"\(moov atom not found\)"),
        ("stream 0: partial file\n", 0, "partial file"),
        ("", 1, "gives no reason"),
    ],
)
def test_what_ffmpeg_complains_of_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: str, status: int, expected: str
) -> None:
    path = fake_ffmpeg(tmp_path, monkeypatch, errors, status)
    with pytest.raises(audio.AudioError, match=f"an MPEG-4 file .*{expected}"):
        audio.load(path)
