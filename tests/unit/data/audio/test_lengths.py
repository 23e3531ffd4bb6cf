"""As many samples as there are, whatever a header says, and one verdict on every road that reads
audio.
"""

from __future__ import annotations

import io
import math
import os
import shlex
import struct
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import audio
from asrtool.data.audio import decoding

RATE, COUNT = 16000, 8000
NOISE = (0.1 * np.random.default_rng(0).standard_normal(COUNT)).astype(np.float32)
TONE = (0.3 * np.sin(np.arange(COUNT) / 9)).astype(np.float32)
FRAME = 576  # samples of an mp3's frame at this rate


def made(
    kind: str, subtype: str | None = None, samples: np.ndarray = NOISE, **how: object
) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, RATE, format=kind, subtype=subtype, **how)
    return stream.getvalue()


def with_size(data: bytes, place: int, form: str, size: int) -> bytes:
    return data[:place] + struct.pack(form, size) + data[place + struct.calcsize(form) :]


def wav(size: int, subtype: str = "PCM_16", riff: int | None = None, **how: object) -> bytes:
    data = made("WAV", subtype, **how)
    data = with_size(data, data.index(b"data") + 4, "<I", size)
    return data if riff is None else with_size(data, 4, "<I", riff)


def rf64(size: int) -> bytes:
    return with_size(with_size(made("RF64", "PCM_16"), 20, "<Q", size), 28, "<Q", size)


def w64(size: int) -> bytes:
    data = made("W64", "PCM_16")
    return with_size(data, data.index(b"data\xf3\xac") + 16, "<Q", size)


def aiff(size: int) -> bytes:
    data = made("AIFF", "PCM_16")
    return with_size(
        with_size(data, data.index(b"SSND") + 4, ">I", size), data.index(b"COMM") + 10, ">I", 0
    )


def caf(size: int) -> bytes:
    data = made("CAF", "PCM_16")
    return with_size(data, data.index(b"data") + 4, ">Q", size)


def flac_of_unknown_length() -> bytes:
    data = bytearray(made("FLAC"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    return bytes(data)


def mp3(mode: str = "CONSTANT") -> tuple[bytes, bytes]:
    """The first frame, which holds the Xing header, and the rest."""
    data = made("MP3", samples=TONE, bitrate_mode=mode, compression_level=0.6)
    end = data.index(data[:2], 4)
    assert b"Xing" in data[:end] or b"Info" in data[:end]
    return data[:end], data[end:]


def vbri(size: int, frames: int) -> bytes:
    first = mp3()[0]
    head = b"VBRI" + struct.pack(">HHHII", 1, 0, 50, size, frames)
    return (first[:4] + bytes(32) + head).ljust(len(first), b"\0")


def chunk(size: int) -> bytes:
    return b"LIST" + struct.pack("<I", size) + bytes(size)


LAST = (1 << 64) - 1
ID3 = b"ID3\4\0\0\0\0\1\0" + bytes(128)
CONSTANT, VARIABLE = mp3()[1], mp3("VARIABLE")[1]
WHOLE = {  # what is read -> bytes, samples
    "wav": (made("WAV"), COUNT),
    "wav, extensible": (made("WAVEX"), COUNT),
    "wav, floats": (made("WAV", "FLOAT"), COUNT),
    "wav of size 0": (wav(0), COUNT),
    "wav of size 0, and RIFF too": (wav(0, riff=0), COUNT),
    "wav of size 0, RIFF of a header": (wav(0, riff=36), COUNT),
    "wav of size 0, digital silence": (wav(0, samples=np.zeros(COUNT)), COUNT),
    "wav from a pipe": (wav(0xFFFFFFFF, riff=0xFFFFFFFF), COUNT),
    "wav from sox": (wav(0x7FFFF000), COUNT),
    "wav of 8 bits from a pipe": (wav(0xFFFFFFFF, "PCM_U8"), COUNT),
    "wav with a chunk behind": (made("WAV") + chunk(5000), COUNT),
    "wav padded with zeros": (made("WAV") + bytes(8000), COUNT),
    "wav with a tag behind": (made("WAV") + b"ID3\3" + bytes(range(1, 256)) * 40, COUNT),
    "ADPCM of IMA": (made("WAV", "IMA_ADPCM"), 8136),
    "ADPCM of Microsoft": (made("WAV", "MS_ADPCM"), 8096),
    "GSM in wav": (made("WAV", "GSM610"), 8320),
    "GSM in wav of size 0": (wav(0, "GSM610"), 8320),
    "GSM in wav from a pipe": (wav(0xFFFFFFFF, "GSM610"), 8320),
    "ADPCM of size 0": (wav(0, "IMA_ADPCM"), 8136),
    "G.721": (made("AU", "G721_32"), 8040),
    **{f"RF64 of size {size:x}": (rf64(size), COUNT) for size in (0, LAST)},
    **{f"W64 of size {size:x}": (w64(size), COUNT) for size in (0, 24, LAST, LAST >> 1)},
    **{f"AIFF of size {size:x}": (aiff(size), COUNT) for size in (0, 8, 0x7FFFFFFF, 0xFFFFFFFF)},
    **{f"CAF of size {size:x}": (caf(size), COUNT) for size in (0, 4, LAST)},
    **{
        f"AU of size {size:x}": (with_size(made("AU"), 8, ">I", size), COUNT)
        for size in (0, 0x7FFFFFFF, 0xFFFFFFFF)
    },
    "NIST sphere": (made("NIST"), COUNT),
    "FLAC of unknown length": (flac_of_unknown_length(), COUNT),
    "mp3": (b"".join(mp3()), COUNT),
    "mp3 with a tag behind": (b"".join(mp3()) + b"TAG" + bytes(125), COUNT),
    "mp3 padded with zeros": (b"".join(mp3()) + bytes(5000), COUNT),
    "mp3 without Xing": (CONSTANT, 16 * FRAME),
    "mp3 without Xing, variable": (VARIABLE, 16 * FRAME),
    "mp3 without Xing, tags around it": (ID3 + CONSTANT + b"TAG" + bytes(125), 16 * FRAME),
    "mp3 without Xing, zeros behind": (CONSTANT + bytes(5000), 16 * FRAME),
    "mp3 with VBRI": (vbri(5000, 16) + CONSTANT, 17 * FRAME),
    "two mp3 joined": (b"".join(mp3() * 8), (8 * 17 - 1) * FRAME),
    "vorbis": (made("OGG", "VORBIS"), COUNT),
    "opus": (made("OGG", "OPUS"), COUNT),
}
OGG = made("OGG", "OPUS")
REFUSED = {  # what is refused -> bytes, why
    "no samples, wav": (made("WAV", samples=NOISE[:0]), "holds no samples"),
    "no samples, and a chunk": (made("WAV", samples=NOISE[:0]) + chunk(60), "holds no samples"),
    "no samples, AIFF": (made("AIFF", samples=NOISE[:0]), "holds no samples"),
    "no bytes": (b"", "empty|printed nothing"),
    "wav, cut": (
        made("WAV")[:-2000],
        "truncated, the header promises 16000 bytes of samples, the file has 14000",
    ),
    "wav, cut behind its header": (made("WAV")[:44], "truncated, the header promises 16000 bytes"),
    "ADPCM, cut": (made("WAV", "IMA_ADPCM")[:-600], "truncated, the header promises"),
    "wav, more samples than it says": (
        wav(4000),
        "promises 4000 bytes of samples, but 12000 more bytes follow",
    ),
    "two wav joined": (
        made("WAV") * 2,
        "promises 16000 bytes of samples, but 16044 more bytes follow",
    ),
    "RF64, cut": (made("RF64", "PCM_16")[:-2000], "truncated"),
    "W64, cut": (made("W64", "PCM_16")[:-2000], "truncated"),
    "AIFF, cut": (made("AIFF")[:-2000], "truncated"),
    "AU, cut": (made("AU")[:-2000], "truncated"),
    "CAF, cut": (made("CAF")[:-2000], "truncated"),
    "Ogg, cut within a page": (OGG[:-10], "truncated, its last Ogg page is incomplete"),
    "Ogg, cut between pages": (
        OGG[: OGG.rindex(b"OggS")],
        "truncated, its last Ogg page does not end the stream",
    ),
    "Ogg, cut within the head of a page": (
        OGG[: OGG.rindex(b"OggS") + 9],
        "truncated, its last Ogg page is incomplete",
    ),
    "two Ogg streams joined": (
        OGG + made("OGG", "VORBIS"),
        "several Ogg streams in a row",
    ),
    "mp3 without Xing, cut within a frame": (
        VARIABLE[:-20],
        "truncated, its last mp3 frame is incomplete",
    ),
    "mp3 with VBRI, cut": (
        vbri(5000, 16) + CONSTANT[: 8 * 288],
        "truncated, the header promises 16 mp3 frames",
    ),
    "NaN": (
        made("WAV", "FLOAT", samples=np.where(NOISE > 0.3, np.nan, NOISE)),
        "samples are NaN or infinite",
    ),
    "at the scale of 16 bits": (
        made("WAV", "FLOAT", samples=NOISE * 32768),
        r"expected values in \[-1, 1\]",
    ),
    "1 Hz": (with_size(made("WAV"), 24, "<I", 1), "the sampling rate is 1 Hz"),
}
LATE = {  # of these the header alone looks right
    "NIST sphere, cut": (made("NIST")[:-2000], "truncated"),
    "FLAC, cut": (made("FLAC")[:-2000], "truncated"),
    "FLAC of unknown length, cut": (flac_of_unknown_length()[:-2000], "truncated"),
    "mp3, cut": (b"".join(mp3())[:-1000], "truncated"),
    "mp3, cut between frames": (b"".join(mp3())[: -4 * 288], "truncated"),
}


def from_archive(path: str) -> str:
    archive = f"{path}.tar"
    with tarfile.open(archive, "w", format=tarfile.USTAR_FORMAT) as stream:
        stream.add(path, "a")
    return f"{archive}:{tarfile.BLOCKSIZE}"


def through_a_named_pipe(path: str) -> int:
    """What `<(command)` gives in bash."""
    pipe, data = f"{path}.pipe", Path(path).read_bytes()
    os.mkfifo(pipe)
    writer = threading.Thread(target=Path(pipe).write_bytes, args=(data,))
    writer.start()
    try:
        return len(audio.listen(pipe)[0])
    finally:
        writer.join()


READERS: dict[str, Callable[[str], int]] = {
    "load": lambda path: len(audio.load(path)[0]),
    "command": lambda path: len(audio.load(f"cat {shlex.quote(path)} |")[0]),
    "member": lambda path: len(audio.load(from_archive(path))[0]),
    "decode": lambda path: len(audio.decode(Path(path).read_bytes(), path)[0]),
    "listen": lambda path: len(audio.listen(path)[0]),
    "blocks": lambda path: sum(len(piece) for piece, _ in audio.blocks(path, 0.1)),
    "named pipe": through_a_named_pipe,
}


def duration(path: str) -> int:
    (seconds,) = audio.durations([path])
    if isinstance(seconds, audio.AudioError):
        raise seconds
    return round(seconds * RATE)


def save(folder: Path, data: bytes) -> str:
    path = folder / "a.wav"  # what a name ends in says nothing of a file
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("what", WHOLE)
def test_all_samples_are_read_on_every_road(tmp_path: Path, what: str) -> None:
    data, count = WHOLE[what]
    path = save(tmp_path, data)
    found = {name: read(path) for name, read in READERS.items()}
    assert found | {"duration": duration(path), "info": audio.info(path)[2]} == dict.fromkeys(
        [*READERS, "duration", "info"], count
    )
    np.testing.assert_array_equal(
        np.concatenate([piece for piece, _ in audio.blocks(path, 0.1)]), audio.load(path)[0]
    )


@pytest.mark.parametrize(
    "what", [f"{kind} of size 0" for kind in ("wav", "RF64", "W64", "AIFF", "CAF", "AU")]
)
def test_the_samples_behind_a_wrong_size_are_the_ones_that_were_written(
    tmp_path: Path, what: str
) -> None:
    np.testing.assert_array_equal(
        audio.load(save(tmp_path, WHOLE[what][0]))[0], audio.decode(made("WAV"), "a")[0]
    )


@pytest.mark.parametrize("what", [*REFUSED, *LATE])
def test_what_cannot_be_right_is_refused_on_every_road(tmp_path: Path, what: str) -> None:
    data, sentence = (REFUSED | LATE)[what]
    path = save(tmp_path, data)
    for name, read in READERS.items():
        with pytest.raises(audio.AudioError, match=sentence) as caught:
            read(path)
        assert "\n" not in str(caught.value), name


@pytest.mark.parametrize(
    "what", [what for what in REFUSED if what not in ("NaN", "at the scale of 16 bits")]
)
def test_a_header_that_cannot_be_right_has_no_duration(tmp_path: Path, what: str) -> None:
    data, sentence = REFUSED[what]
    path = save(tmp_path, data)
    if sentence == "holds no samples":
        assert duration(path) == 0  # stage 0 leaves it out with this sentence
        return
    with pytest.raises(audio.AudioError, match=sentence):
        duration(path)


@pytest.mark.parametrize(
    "what",
    [
        "wav",
        "ADPCM of IMA",
        "GSM in wav",
        "FLAC of unknown length",
        "mp3",
        "mp3 without Xing",
        "vorbis",
        "opus",
    ],
)
def test_a_segment_is_the_same_stretch_of_the_whole(tmp_path: Path, what: str) -> None:
    path = save(tmp_path, WHOLE[what][0])
    whole = audio.load(path)[0]
    for start, length in ((0.0, 0.1), (0.2, 0.15), (0.3, None), (0.111, 0.2)):
        first = round(start * RATE)
        last = None if length is None else first + round(length * RATE)
        np.testing.assert_array_equal(audio.load(path, start, length)[0], whole[first:last])
    with pytest.raises(
        audio.AudioError,
        match=r"the segment from 0.400 to 0.600 s is outside the recording",
    ):
        audio.load(path, 0.4, 0.2)


def test_a_segment_of_nothing_is_refused_as_nothing(tmp_path: Path) -> None:
    with pytest.raises(audio.AudioError, match="holds no samples"):
        audio.load(save(tmp_path, REFUSED["no samples, wav"][0]), 0.1, 0.2)


def test_a_file_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    path = save(tmp_path, made("WAV", "GSM610"))
    before = audio.load(path, 0.1, 0.2)[0]
    save(tmp_path, made("WAV", "GSM610", samples=np.concatenate([TONE, TONE])))
    assert not np.array_equal(audio.load(path, 0.1, 0.2)[0], before)


def test_a_header_cannot_take_all_memory(tmp_path: Path) -> None:
    data = bytearray(made("FLAC"))
    data[21] |= 0x0F
    data[22:26] = b"\xff" * 4  # 2**36 samples: 256 GB of floats
    with pytest.raises(audio.AudioError, match="truncated"):
        audio.load(save(tmp_path, bytes(data)))


def test_a_stream_says_how_far_it_came(tmp_path: Path) -> None:
    pieces = audio.blocks(save(tmp_path, LATE["mp3, cut between frames"][0]), 0.1)
    assert len(next(pieces)[0]) == 1600
    with pytest.raises(
        audio.AudioError, match=r"truncated or damaged, it promises 0.50 s but " r"ends at 0.3\d s"
    ):
        list(pieces)


def test_an_encoding_that_libsndfile_lacks_has_a_way_out(tmp_path: Path) -> None:
    data = made("WAV", "IMA_ADPCM")
    with pytest.raises(audio.AudioError, match="ffmpeg -i <file> new.wav"):
        audio.load(save(tmp_path, data[:20] + struct.pack("<H", 0x50) + data[22:]))


def test_a_lossy_decoder_may_overshoot(tmp_path: Path) -> None:
    assert math.isclose(
        np.abs(audio.decode(made("WAV", "FLOAT", samples=TONE * 10), "a")[0]).max(),
        3.0,
        rel_tol=0.01,
    )


def test_long_audio_is_put_together_of_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stereo = np.stack([NOISE, TONE], axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, RATE, subtype="FLOAT")
    monkeypatch.setattr(decoding, "BLOCK", 999)
    with decoding.opened(str(tmp_path / "a.wav")) as reader:
        np.testing.assert_array_equal(reader.all(), stereo)
