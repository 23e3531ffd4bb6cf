"""Formats that libsndfile does not read: m4a, webm, amr, wma, NIST sphere with shorten ...

`detect` recognises them by their first bytes. PyAV decodes them if it is installed, else ffmpeg if
it is on the PATH. Without either, `Unreadable` names the format and a command for wav.scp that
reads it.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from types import ModuleType
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from asrtool.data.audio import headers

HEAD = 65536  # bytes that hold the header of what ffmpeg prints
LACKING = 0.2  # seconds that may be missing at the end: encoders pad, and containers round
FFMPEG = "ffmpeg -v error -i {file} -f wav - |"


class Unreadable(Exception):
    """Why a file cannot be decoded: a message without the file's name."""


class Kind(NamedTuple):
    """A format: its name, a command for wav.scp that reads it, whether PyAV and ffmpeg decode it,
    and whether its duration is exact to the sample (encoders pad what they write).
    """

    name: str
    command: str = FFMPEG
    decodes: bool = True
    exact: bool = False

    def way_out(self, path: str) -> str:
        """A command for wav.scp that reads the file, or the output of a command."""
        if path.rstrip().endswith("|"):
            return f"{path.rstrip()} {self.command.format(file='-')}"
        return self.command.format(file=shlex.quote(path))


MATROSKA = Kind("a Matroska file (webm, mka, mkv)")
SPHERE = Kind("a compressed NIST sphere file", "sph2pipe -f wav {file} |", decodes=False)
GZIP = Kind("a file compressed by gzip", "gunzip -c {file} |", decodes=False)
BEGINNINGS = (
    (rb"\x1a\x45\xdf\xa3", MATROSKA),
    (rb"....ftyp3g", Kind("a 3GPP file (3gp)", exact=True)),
    (
        rb"....(?:ftyp|moov|mdat|wide|free)",
        Kind("an MPEG-4 file (m4a, mp4, mov)", exact=True),
    ),
    (rb"#!AMR", Kind("an AMR file")),
    (rb"\xff[\xf0\xf1\xf8\xf9]", Kind("an AAC stream (aac)")),
    (rb"ADIF", Kind("an AAC stream (aac)")),
    (rb"0&\xb2u\x8ef\xcf\x11", Kind("a Windows Media file (wma, asf)")),
    (rb"RIFF....AVI ", Kind("an AVI file")),
    (rb"FLV\x01", Kind("a Flash video (flv)")),
    (rb"\x00\x00\x01\xba", Kind("an MPEG program stream (mpg)")),
    (rb"G.{187}G.{187}G", Kind("an MPEG transport stream (ts)")),
    (rb"\x0bw", Kind("an AC-3 stream")),
    (rb"\x7f\xfe\x80\x01", Kind("a DTS stream")),
    (rb"wvpk", Kind("a WavPack file")),
    (rb"TTA[12]", Kind("a True Audio file (tta)")),
    (rb"MAC ", Kind("a Monkey's Audio file (ape)")),
    (rb"ajkg", Kind("a shorten file (shn)")),
    (rb"OggS.{22}.{1,256}?Speex   ", Kind("an Ogg file with Speex")),
    (rb"\x1f\x8b", GZIP),
    (rb"BZh[1-9]", GZIP._replace(name="a file compressed by bzip2", command="bzip2 -dc {file} |")),
    (rb"\xfd7zXZ\x00", GZIP._replace(name="a file compressed by xz", command="xz -dc {file} |")),
    (rb"PK\x03\x04", GZIP._replace(name="a zip archive", command="unzip -p {file} |")),
    (
        rb"version https://git-lfs",
        Kind("a pointer of Git LFS, not the file itself (`git lfs pull` gets it)", "", False),
    ),
    (
        rb"\s*<(?i:!doctype html|html)",
        Kind("a web page, perhaps what a server said instead of the file", "", False),
    ),
)
# formats that only some builds of libsndfile read
SOMETIMES = ((rb"OggS.{24,280}?\x7fFLAC", Kind("an Ogg file with FLAC")),)
# codecs in wav that libsndfile reads
SNDFILE = {1, 2, 3, 6, 7, 0x11, 0x31, 0x38, 0x40, 0x45, 0x50, 0x55, headers.EXTENSIBLE}


def detect(stream: BinaryIO, size: int, failed: bool = False) -> Kind | None:
    """The format of a file that libsndfile does not read; None for all others.

    failed: libsndfile could not open it.
    """
    stream.seek(0)
    head = stream.read(4096)
    for pattern, kind in (*BEGINNINGS, *(SOMETIMES if failed else ())):
        if re.match(pattern, head, re.DOTALL):
            return kind
    if head.startswith(b"NIST_1A"):
        packed = re.search(rb"^sample_coding .*embedded-([a-z]+)", head, re.MULTILINE)
        name = packed and f"a NIST sphere file compressed by {packed[1].decode()}"
        return SPHERE._replace(name=name) if packed else None
    if head[:4] == b"RIFF":
        layout = headers.samples(stream, size, head[:4])
        codec = int.from_bytes(layout.form[:2], "little") if layout and len(layout.form) > 1 else 1
        return None if codec in SNDFILE else Kind(f"a wav file with the codec 0x{codec:04x}")
    return None


class Decoded:
    """An open file of a foreign format, for `decoding.Reader`: read once, from start to end."""

    format = "FOREIGN"

    def __init__(self, samplerate: int, channels: int, parts: Iterator[np.ndarray]) -> None:
        """parts: blocks (T, C) float32."""
        self.samplerate, self.channels = samplerate, channels
        self._parts, self._rest = parts, np.zeros((0, channels), np.float32)

    def read(self, size: int, **_: object) -> np.ndarray:
        """(size, C) float32, fewer at the end."""
        blocks, count = [self._rest], len(self._rest)
        while count < size and (part := next(self._parts, None)) is not None:
            blocks.append(part)
            count += len(part)
        joined = np.concatenate(blocks)
        self._rest = joined[size:]
        return joined[:size]


def decoder(path: str, kind: Kind, stream: BinaryIO, stack: ExitStack, is_file: bool) -> Decoded:
    """The decoder of a file, or of the bytes of `stream`. Raises `Unreadable`."""
    if kind.decodes and (av := _pyav()) is not None:
        return _by_pyav(av, kind, stream, stack)
    if kind.decodes and shutil.which("ffmpeg") is not None:
        if not is_file:
            # many containers can only be read by seeking, which a pipe does not allow
            copy = stack.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115
            stream.seek(0)
            shutil.copyfileobj(stream, copy)
            copy.flush()
            path = copy.name
        return _by_ffmpeg(path, kind, stack)
    message = f"{kind.name}, expected audio"
    if kind.command:
        need = "install PyAV (`pip install av`) or ffmpeg, or " if kind.decodes else ""
        message = (
            f"{kind.name}, which libsndfile does not read; {need}use a command in wav.scp: "
            f"`{kind.way_out(path)}`"
        )
    raise Unreadable(message)


def _pyav() -> ModuleType | None:
    try:
        import av
    except ImportError:
        return None
    return av if hasattr(av, "AudioResampler") else None  # not a folder of that name


def _by_pyav(av: ModuleType, kind: Kind, stream: BinaryIO, stack: ExitStack) -> Decoded:
    stream.seek(0)
    try:
        container = stack.enter_context(av.open(stream))
        if not container.streams.audio:
            raise Unreadable(f"{kind.name} without audio")
        track = container.streams.audio[0]
        rate, channels = track.rate, track.channels
    except av.FFmpegError as error:
        raise Unreadable(f"{kind.name} that cannot be read ({_reason(error)})") from None
    promised = track.duration and float(track.duration * track.time_base)
    promised = promised or (container.duration or 0) / av.time_base
    return Decoded(rate, channels, _frames(av, kind, container, promised))


def _frames(av: ModuleType, kind: Kind, container: Any, promised: float) -> Iterator[np.ndarray]:
    """Blocks (T, C). Raises `Unreadable` if they end before `promised` seconds."""
    track = container.streams.audio[0]
    # an exact duration leaves out the padding that the encoder added at the end
    most = round(promised * track.rate) if kind.exact and promised else math.inf
    convert = av.AudioResampler(format="flt", layout=track.layout, rate=track.rate)
    count = 0
    try:
        for frame in itertools.chain(container.decode(track), [None]):
            for part in convert.resample(frame):
                block = part.to_ndarray().reshape(-1, track.channels)
                yield block[: max(0, min(most - count, len(block)))]
                count += len(block)
    except av.FFmpegError as error:
        at = count / track.rate
        raise Unreadable(
            f"{kind.name}, damaged or truncated at {at:.2f} s ({_reason(error)})"
        ) from None
    if count / track.rate < promised - LACKING:
        raise Unreadable(
            f"{kind.name}, truncated: the header promises {promised:.2f} s but it ends at "
            f"{count / track.rate:.2f} s"
        )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _by_ffmpeg(path: str, kind: Kind, stack: ExitStack) -> Decoded:
    errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
    # "file:" keeps ffmpeg from reading a name as an address or an option
    command = ["ffmpeg", "-nostdin", "-v", "error", "-protocol_whitelist", "file,pipe"]
    command += ["-i", f"file:{path}", "-map", "0:a:0", "-c:a", "pcm_f32le", "-f", "wav", "pipe:1"]
    process = stack.enter_context(
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, bufsize=HEAD
        )
    )
    # a reader that stops early closes the pipe, which ends ffmpeg
    stack.callback(process.stdout.close)

    def failure() -> Unreadable | None:
        errors.seek(0)
        message = errors.read().decode(errors="replace").strip().replace(f"file:{path}: ", "")
        if not process.wait() and not message:
            return None
        first = re.sub(r"^(\[.*?\] )*", "", message.split("\n")[0])
        return Unreadable(
            f"{kind.name}, damaged or truncated ({first or 'ffmpeg gives no reason'})"
        )

    head = process.stdout.read(HEAD)
    layout = headers.samples(io.BytesIO(head), len(head), head[:4])
    rate, block = (0, 0) if layout is None else headers.plain(layout.form)
    if not block:
        raise failure() or Unreadable(f"{kind.name} without audio")

    def parts() -> Iterator[np.ndarray]:
        # a read may end within a frame: the remainder goes in front of the next one
        data = head[layout.start :]
        while data:
            whole = len(data) - len(data) % block
            yield np.frombuffer(data[:whole], "<f4").reshape(-1, block // 4)
            more = process.stdout.read(HEAD * 16)
            data = data[whole:] + more if more else b""
        if (wrong := failure()) is not None:
            raise wrong

    return Decoded(rate, block // 4, parts())
