"""Decode an audio file, or its bytes, to the end, whatever its header says.

A file that ends before the length in its header is truncated, which is an error however it is read.
If the header has no length (mp3 without Xing header, FLAC written to a pipe), only decoding to the
end shows it. A path is never run as a command here.
"""

from __future__ import annotations

import io
import numbers
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import soundfile

from asrtool.data.audio import foreign, headers
from asrtool.errors import UserError
from asrtool.system import characters

BLOCK = 1 << 20  # maximum number of samples decoded at once, whatever the header promises
LOWEST, HIGHEST = 1000, 10_000_000  # Hz: no speech below, no recorder above
UNKNOWN = 1 << 60  # from here on, libsndfile's lengths mean "not known"


class AudioError(UserError):
    """Audio cannot be used; the message names the file or command and the reason."""


class _Forward(soundfile.SoundFile):
    """A file without soundfile's seek to its own position after each read: mp3 seeks inexactly."""

    def seekable(self) -> bool:
        return False


class Reader:
    """An open file: rate in Hz, channels, and `promised` samples of each (None: not known).

    Fewer samples than `promised` or `least` are an error.
    """

    def __init__(
        self,
        name: str,
        file: soundfile.SoundFile | foreign.Decoded,
        promised: int | None,
        least: int = 0,
    ) -> None:
        self.name, self._file, self.promised = name, file, promised
        self._least = least if promised is None else promised
        self.rate, self.channels = file.samplerate, file.channels
        check_rate(self.rate, name)

    @property
    def seeks(self) -> bool:
        """Whether `stretch` can start anywhere; mpg123 does not seek to the exact sample."""
        return (
            self.promised is not None
            and self._file.format != "MP3"
            and soundfile.SoundFile.seekable(self._file)
        )

    def blocks(self, size: int = BLOCK) -> Iterator[np.ndarray]:
        """All samples (T, C) float32 in blocks of `size`; `AudioError` at the end if any lack."""
        count = 0
        while len(part := self._file.read(size, dtype="float32", always_2d=True)):
            count += len(part)
            yield part
        self._expect(self._least, count)

    def all(self) -> np.ndarray:
        """All samples (T, C) float32."""
        return self._joined(
            self.blocks(BLOCK if self.promised is None else max(1, min(self.promised, BLOCK)))
        )

    def stretch(self, first: int, count: int) -> np.ndarray:
        """(count, C) float32 from sample `first` on, of a file that `seeks`."""
        self._file.seek(first)
        sizes = [BLOCK] * (count // BLOCK) + [count % BLOCK]
        samples = self._joined(
            self._file.read(size, dtype="float32", always_2d=True) for size in sizes if size
        )
        self._expect(first + count, first + len(samples))
        return samples

    def _joined(self, parts: Iterator[np.ndarray]) -> np.ndarray:
        samples = next(parts, np.zeros((0, self.channels), np.float32))
        for part in parts:
            count = len(samples)
            samples = samples if samples.flags.owndata else samples.copy()
            # grown in place, so that hours of audio are not copied for each block
            samples.resize((count + len(part), self.channels), refcheck=False)
            samples[count:] = part
        return samples

    def length(self) -> int:
        """Samples per channel; decoded and counted if the header has no length."""
        return sum(map(len, self.blocks())) if self.promised is None else self.promised

    def _expect(self, promised: int, decoded: int) -> None:
        if decoded < promised:
            seconds = (
                f"promises {promised / self.rate:.2f} s but ends at {decoded / self.rate:.2f} s"
            )
            raise AudioError(f"{self.name}: truncated or damaged, it {seconds}")


@contextmanager
def opened(path: str, data: bytes | None = None) -> Iterator[Reader]:
    """Open a file, or `data` with the name `path`, for reading.

    Raises AudioError, also for errors inside the block.
    """
    try:
        with ExitStack() as stack:
            yield _open(path, data, stack)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.strip(". ") or "libsndfile reports an error"
        remedy = "if other programs play it, convert it to wav (`ffmpeg -i <file> new.wav`)"
        raise AudioError(
            f"{path}: damaged, truncated, or not audio in a supported format ({reason}); {remedy}"
        ) from None
    except (headers.Damage, foreign.Unreadable) as reason:
        raise AudioError(f"{path}: {reason}") from None


def check_rate(rate: float, name: str) -> int:
    """The sampling rate as an integer; `AudioError` if it is impossible."""
    if not isinstance(rate, numbers.Real) or not LOWEST <= rate <= HIGHEST or rate != int(rate):
        raise AudioError(
            f"{name}: the sampling rate is {rate} Hz, expected an integer from {LOWEST} to "
            f"{HIGHEST}"
        )
    return int(rate)


def contents(path: str) -> bytes:
    """The bytes of a file."""
    with _reading(path), open(path, "rb") as stream:
        return stream.read()


def _open(path: str, data: bytes | None, stack: ExitStack) -> Reader:
    with _reading(path):
        data = _from_pipe(path) if data is None else data
        stream = stack.enter_context(open(path, "rb") if data is None else io.BytesIO(data))  # noqa: SIM115
        size = stream.seek(0, io.SEEK_END)
        if not size:
            raise AudioError(f"{path}: the file is empty (0 bytes)")
        if (kind := foreign.detect(stream, size)) is not None:
            return Reader(path, foreign.decoder(path, kind, stream, stack, data is None), None)
        view = headers.view(stream, size)
        # soundfile wants more arguments for a name in .raw, and cannot encode one that is not UTF-8
        odd = path.lower().endswith(".raw") or not characters.is_utf8(path)
        if view is None and (data is not None or odd):
            view = headers.View(stream, size)
        try:
            file = stack.enter_context(_Forward(view or path))
        except soundfile.LibsndfileError:
            if (kind := foreign.detect(stream, size, failed=True)) is None:
                raise
            return Reader(path, foreign.decoder(path, kind, stream, stack, data is None), None)
        promised, least = file.frames if file.frames < UNKNOWN else None, 0
        if file.format == "MP3":
            view, least = headers.mp3_view(stream, size)
            if view is not None:
                file, promised = stack.enter_context(_Forward(view)), None
        elif file.subtype.startswith("MPEG"):
            promised = None  # mp3 inside wav: its number of samples is a guess
        elif file.format == "NIST":
            promised = max(promised, headers.sphere_length(stream))
    return Reader(path, file, promised, least)


def _from_pipe(path: str) -> bytes | None:
    """All bytes of a named pipe; None for a file."""
    mode = os.stat(path).st_mode
    if stat.S_ISFIFO(mode):
        return contents(path)
    if not stat.S_ISREG(mode):
        raise AudioError(f"{path}: {'is a directory' if stat.S_ISDIR(mode) else 'is not a file'}")
    return None


@contextmanager
def _reading(path: str) -> Iterator[None]:
    if "\0" in path:
        raise AudioError(f"{path!r}: the path contains a zero byte")
    try:
        yield
    except OSError as error:
        reason = (error.strerror or "cannot be opened").lower()
        if path.rstrip().endswith("|"):
            reason += "; commands are only run from wav.scp of a data directory"
        elif not os.path.isabs(path):
            reason += f" (relative paths start at {os.getcwd()})"
        raise AudioError(f"{path}: {reason}") from None
