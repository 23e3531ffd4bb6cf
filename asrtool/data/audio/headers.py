"""The length in the header of an audio file, and whether it can be trusted.

libsndfile trusts every header. A recorder that was killed leaves a length of 0; a program that
writes to a pipe leaves the largest possible number; an mp3 often has no length, and libsndfile
guesses one. So the header is checked first, and if libsndfile would not read all of the file, it is
given a `View` of it. `Damage` says what is wrong with a file.
"""

from __future__ import annotations

import io
import re
import struct
from typing import BinaryIO, NamedTuple

# 4-byte sizes from here on mean "not known when the header was written"
STREAMED = 0x7FFF0000
STREAMED_LONG = 1 << 62  # the same for 8-byte sizes
BEHIND = 4096  # bytes after the samples that are accepted without a look at them
SCANNED = 1 << 16  # bytes in which the first frame of an mp3, or the last page of an Ogg, starts
TAGS = (b"TAG", b"ID3", b"APETAGEX", b"LYRICS")  # tags that players write after the audio
ID3V1 = 128  # bytes of an ID3v1 tag, at the very end of a file
SAVES = "`ffmpeg -i <file> new.wav` saves the intact part"


class Damage(Exception):
    """What is wrong with a file: a message without the file's name."""


class View:
    """The bytes of a file as libsndfile sees them: from `skip` to `size`, with `new` bytes at `at`.

    longer: the factor by which the file pretends to be longer than it is.
    """

    def __init__(
        self,
        stream: BinaryIO,
        size: int,
        skip: int = 0,
        at: int = 0,
        new: bytes = b"",
        longer: int = 1,
    ) -> None:
        self._stream, self._skip, self._at, self._new = stream, skip, at, new
        self._size = size - skip
        self._seeming = self._size * longer
        self._position = 0

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._seeming)[whence]
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        self._stream.seek(self._skip + self._position)
        data = self._stream.read(max(0, min(len(buffer), self._size - self._position)))
        # mpg123 looks for an ID3v1 tag at the end: without any bytes there, it would take the file
        # for a pipe
        if not data and self._position >= self._seeming - ID3V1:
            data = bytes(max(0, min(len(buffer), self._seeming - self._position)))
        # overwrite the part of `new` that lies within this read
        first = max(self._at, self._position)
        last = min(self._at + len(self._new), self._position + len(data))
        if first < last:
            new = self._new[first - self._at : last - self._at]
            data = data[: first - self._position] + new + data[last - self._position :]
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)


def view(stream: BinaryIO, size: int) -> View | None:
    """The view that libsndfile needs of a file of `size` bytes; None: the file itself will do.

    Raises `Damage` for a truncated file.
    """
    stream.seek(0)
    magic = stream.read(4)
    if magic == b"OggS":
        check_pages(stream, size)
    layout = samples(stream, size, magic)
    if layout is None or believed(stream, size, layout):
        return None
    # The header has no true size: show libsndfile one that spans all bytes of the file. The limit
    # is below the largest number of the field, which would mean "unknown" again.
    there, limit = size - layout.start + layout.extra, (1 << 8 * layout.width) - 2
    return View(
        stream, size, at=layout.field, new=min(there, limit).to_bytes(layout.width, layout.order)
    )


# -- files of chunks: wav, RF64, W64, AIFF, CAF, and AU, which has a single one --


class Layout(NamedTuple):
    """How a container stores its chunks: name, size, content, padding to a multiple of `align`."""

    first: int  # offset of the first chunk
    order: str = "little"
    name: int = 4  # bytes of a chunk's name
    width: int = 4  # bytes of its size
    align: int = 2
    header_bytes: int = 0  # bytes of the chunk's own header that its size includes
    inner: int = 0  # bytes between the chunk's header and the samples
    data: bytes = b"data"


LAYOUTS = {
    b"RIFF": Layout(12),
    b"RIFX": Layout(12, "big"),
    b"RF64": Layout(12),
    b"BW64": Layout(12),
    b"riff": Layout(40, name=16, width=8, align=8, header_bytes=24),
    b"FORM": Layout(12, "big", inner=8, data=b"SSND"),
    b"caff": Layout(8, "big", width=8, align=1, inner=4),
}


class Samples(NamedTuple):
    """The position of a file's samples, and their size according to the header."""

    layout: Layout
    start: int
    field: int  # position of the size field
    width: int  # bytes of the size field
    order: str
    stated: int  # the value of the size field
    extra: int  # how many of the stated bytes are not samples
    form: bytes = b""  # content of wav's chunk "fmt "

    @property
    def size(self) -> int:
        return max(0, self.stated - self.extra)


def samples(stream: BinaryIO, size: int, magic: bytes) -> Samples | None:
    """The position of the samples; None for other kinds of files, or if there are no samples."""
    if magic in (b".snd", b"dns."):
        head = stream.read(8)
        order = "big" if magic == b".snd" else "little"
        start, stated = int.from_bytes(head[:4], order), int.from_bytes(head[4:], order)
        return Samples(Layout(start, name=0), start, 8, 4, order, stated, 0)
    layout = LAYOUTS.get(magic)
    return None if layout is None else _data_chunk(stream, size, layout)


def _data_chunk(stream: BinaryIO, end: int, layout: Layout) -> Samples | None:
    """The chunk of the samples, found by following the sizes from chunk to chunk."""
    at, form, long_size = layout.first, b"", None
    head = layout.name + layout.width
    while at + head <= end:
        stream.seek(at)
        start = stream.read(head)
        size = int.from_bytes(start[layout.name :], layout.order)
        if start[: len(layout.data)] == layout.data:
            field, width, stated = at + layout.name, layout.width, size
            # RF64: a size beyond 32 bits is in the chunk ds64
            if long_size is not None and size >= STREAMED:
                field, width = long_size, 8
                stream.seek(field)
                stated = int.from_bytes(stream.read(8), "little")
            extra = layout.header_bytes + layout.inner
            return Samples(
                layout, at + head + layout.inner, field, width, layout.order, stated, extra, form
            )
        if start[:4] == b"fmt ":
            form = stream.read(min(size, 40))
        elif start[:4] == b"ds64":
            long_size = at + head + 8
        at = _next(layout, at, size)
    return None


def _next(layout: Layout, at: int, size: int) -> int:
    """The offset of the chunk after the one at `at`."""
    return (
        at + layout.name + layout.width + max(0, size - layout.header_bytes + -size % layout.align)
    )


PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # format codes of wav


def plain(form: bytes) -> tuple[int, int]:
    """Rate and bytes per frame from wav's chunk "fmt "; 0 bytes for compressed audio."""
    if len(form) < 16:
        return 0, 0
    kind, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", form)
    if kind == EXTENSIBLE and len(form) >= 26:
        # the extensible form has the real code at the start of its GUID
        kind = int.from_bytes(form[24:26], "little")
    return rate, block if kind in (PCM, FLOAT) and block == channels * -(-bits // 8) else 0


def believed(stream: BinaryIO, size: int, layout: Samples) -> bool:
    """Whether the file has as many samples as the header says; False if the header has no size.

    Raises `Damage` if samples are missing, or unexplained bytes follow them.
    """
    there = size - layout.start
    if layout.size > there:
        if layout.stated >= (STREAMED if layout.width == 4 else STREAMED_LONG):
            return False
        raise Damage(
            f"truncated, the header promises {layout.size} bytes of samples, the file has {there}"
        )
    end = layout.start + layout.size
    # A size of 0 is true for a file without samples, after which only other chunks may follow. Else
    # the recorder never wrote it, and what follows is audio.
    if not layout.size:
        return there <= 0 or _is_no_audio(stream, size, layout.layout, end)
    if there - layout.size > BEHIND and not _is_no_audio(
        stream, size, layout.layout, end, padded=True
    ):
        raise Damage(
            f"the header promises {layout.size} bytes of samples, but {there - layout.size} more"
            " bytes follow: the recorder was stopped, or files were joined; `ffmpeg "
            "-ignore_length 1 -i <file> new.wav` saves all"
        )
    return True


def _is_no_audio(
    stream: BinaryIO, size: int, layout: Layout, at: int, padded: bool = False
) -> bool:
    """Whether only chunks, a tag or (`padded`) zeros lie between `at` and the end of the file."""
    if layout.name and any(
        _are_chunks(stream, size, layout, at + pad) for pad in {0, at % layout.align}
    ):
        return True
    stream.seek(at)
    start = stream.read(SCANNED)
    return start.startswith(TAGS) or (padded and not start.strip(b"\0"))


def _are_chunks(stream: BinaryIO, size: int, layout: Layout, at: int) -> bool:
    """Whether a sequence of well-formed chunks leads from `at` exactly to the end of the file."""
    head = layout.name + layout.width
    while at + head <= size:
        stream.seek(at)
        start = stream.read(head)
        # another file was joined, or this is no chunk name
        if start[:4] in LAYOUTS or not re.fullmatch(rb"[ -~]{4}", start[:4]):
            return False
        at = _next(layout, at, int.from_bytes(start[layout.name :], layout.order))
    return abs(at - size) < layout.align


# -- mp3 -----------------------------------------------------------------------

# mpg123 guesses the length from the size of the first frame: factor by which that may exceed others
RATIO = 64
LOST = 3  # frames that mpg123 may skip at joints of streams
BITRATES = {  # kbit/s of layer III by the header's index; True: MPEG 1, False: MPEG 2 and 2.5
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
# Hz by the version bits of the header: MPEG 1, 2 and 2.5
RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def mp3_view(stream: BinaryIO, size: int) -> tuple[View | None, int]:
    """The view of an mp3 for libsndfile (None: the file itself), and a lower bound of its samples.

    A Xing header is trusted unless the file continues after the end that it states. Without one,
    libsndfile guesses a length, so the view pretends to be long enough that it does not stop early.
    Raises `Damage` if the last frame is incomplete.
    """
    start = _after_tags(stream)
    stream.seek(start)
    window = stream.read(SCANNED)
    at = _first_frame(window)
    if at is None:
        return View(stream, size, longer=RATIO), 0
    frame, first = window[at : at + _frame(window, at)], start + at
    xing = re.search(rb"Xing|Info", frame[:44])
    if xing and _is_whole(stream, size, first, frame[xing.end() :]):
        return None, 0
    stream.seek(first)
    count, end = _frames(stream.read())
    if first + end > size:
        raise Damage("truncated, its last mp3 frame is incomplete")
    if frame[36:40] == b"VBRI" and (promised := int.from_bytes(frame[50:54], "big")) > count:
        raise Damage(f"truncated, the header promises {promised} mp3 frames, the file has {count}")
    # samples of a frame: 1152 in MPEG 1, 576 in MPEG 2 and 2.5
    least = (count - LOST) * (1152 if frame[1] >> 3 & 3 == 3 else 576)
    return View(stream, first + end, skip=first + (len(frame) if xing else 0), longer=RATIO), max(
        0, least
    )


def _after_tags(stream: BinaryIO) -> int:
    """The offset of the audio, after any ID3v2 tags."""
    start = 0
    stream.seek(start)
    while (head := stream.read(10))[:3] == b"ID3" and len(head) == 10:
        # a "syncsafe" size: 7 bits per byte, so that it contains no frame header
        length = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        start += 10 + length + (10 if head[5] & 16 else 0)
        stream.seek(start)
    return start


def _frame(data: bytes, at: int) -> int:
    """The length in bytes of the layer III frame whose header is at `at`; 0 if there is none."""
    # a header starts with 11 set bits
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return 0
    version, layer, index, rate = (
        data[at + 1] >> 3 & 3,
        data[at + 1] >> 1 & 3,
        data[at + 2] >> 4,
        data[at + 2] >> 2 & 3,
    )
    # reserved values, other layers, and the bit rate "free", whose frames state no length
    if version == 1 or layer != 1 or index in (0, 15) or rate == 3:
        return 0
    samples = 144 if version == 3 else 72
    return samples * BITRATES[version == 3][index] * 1000 // RATES[version][rate] + (
        data[at + 2] >> 1 & 1
    )


def _first_frame(data: bytes, at: int = 0) -> int | None:
    """The first frame at or after `at` that is followed by another frame or the end.

    A single header would also match arbitrary bytes.
    """
    while (at := data.find(b"\xff", at)) >= 0:
        length = _frame(data, at)
        if length and (at + length == len(data) or _frame(data, at + length)):
            return at
        at += 1
    return None


def _frames(data: bytes) -> tuple[int, int]:
    """The number of frames and the end of the last; gaps between joined streams are skipped."""
    count, at, end = 0, _first_frame(data), 0
    while at is not None:
        while length := _frame(data, at):
            count, at = count + 1, at + length
        end, at = at, _first_frame(data, at)
    return count, end


def _is_whole(stream: BinaryIO, size: int, first: int, xing: bytes) -> bool:
    """Whether a Xing header states the number of frames, and no frame follows its end."""
    flags, *numbers = struct.unpack_from(">III", xing.ljust(12, b"\0"))
    # flags say which numbers follow: 1 for frames, 2 for bytes
    promised = numbers.pop(0) if flags & 1 else 0
    end = first + numbers[0] if flags & 2 else size
    if not promised or size - end <= BEHIND:
        return bool(promised)
    stream.seek(end)
    return _first_frame(stream.read(SCANNED)) is None


# -- Ogg -----------------------------------------------------------------------


def check_pages(stream: BinaryIO, size: int) -> None:
    """Raise `Damage` unless the last page is complete and ends the stream of the first."""
    stream.seek(0)
    first = stream.read(27)
    stream.seek(max(0, size - SCANNED))
    tail = stream.read()
    page = tail[tail.rfind(b"OggS") :]
    # a page header has 27 bytes, then a table of segment sizes whose length is byte 26
    length = 27 + page[26] + sum(page[27 : 27 + page[26]]) if len(page) > 26 else 27
    if not page.startswith(b"OggS") or len(page) < length:
        raise Damage("truncated, its last Ogg page is incomplete")
    # flag 4: last page of the stream
    if not page[5] & 4:
        raise Damage(f"truncated, its last Ogg page does not end the stream; {SAVES}")
    # the serial number of the stream
    if page[14:18] != first[14:18]:
        raise Damage(f"several Ogg streams in a row, only the first of which can be read; {SAVES}")


# -- FLAC ----------------------------------------------------------------------


def flac_room(stream: BinaryIO) -> int | None:
    """The most bytes that the FLAC at the stream's position can have; None where its header does
    not say how many samples it has.

    The format (RFC 9639) writes no size: it follows from the samples, and from the largest frame
    or, where that is not known either, from samples that are not compressed.
    """
    head = len(stream.read(4))
    info, last = b"", False
    while not last and len(block := stream.read(4)) == 4:
        last, size = bool(block[0] & 0x80), int.from_bytes(block[1:])
        content = stream.read(size)
        info = content if block[0] & 0x7F == 0 else info
        head += 4 + size
    if len(info) < 18:
        return None
    shortest, largest = int.from_bytes(info[:2]), int.from_bytes(info[7:10])
    packed = int.from_bytes(info[10:18])  # 20 bits of rate, 3, 5, and 36 of the samples
    channels, bits = (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1
    count = packed & (1 << 36) - 1
    if not count or not shortest:
        return None
    frames = -(-count // shortest)
    # beside the samples: the frame's header and checksums, and a header of each channel
    plain = -(-count * channels * (bits + 1) // 8) + frames * (18 + 8 * channels)
    return head + (min(plain, frames * largest) if largest else plain)


# -- NIST sphere ---------------------------------------------------------------


def sphere_length(stream: BinaryIO) -> int:
    """Samples per channel according to the header; 0 if it has no length."""
    stream.seek(0)
    match = re.search(rb"^sample_count -i (\d+)", stream.read(1024), re.MULTILINE)
    return int(match[1]) if match else 0
