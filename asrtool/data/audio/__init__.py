"""Read audio: wav, flac, ogg, opus, mp3, NIST sphere and everything else that libsndfile reads;
m4a, webm and others if PyAV or ffmpeg is installed (`foreign`).

An entry of wav.scp is a path; `<file>.tar:<offset>`, a member of a tar archive (a shard) whose
content starts at this byte; `<file>.ark:<offset>`, a recording of a Kaldi archive; or a shell
command that ends in `|` and prints audio. `read`, `load`, `info`, `durations` and `lengths` take
entries, so they run commands. `listen` and `blocks` take paths and never run commands. Changes of
speed (`speed_command`) are computed here, so sox need not be installed for them.

These raise AudioError: a missing, empty, truncated or damaged file, NaN or infinite samples,
samples far above full scale, an impossible sampling rate; in entries also more than one channel
(only the user knows which one to take). Audio at another sampling rate is resampled, and stage 1
counts it.
"""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import stat
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from asrtool.data.audio import decoding, headers
from asrtool.data.audio.decoding import AudioError, check_rate, opened
from asrtool.data.audio.resampling import change_speed, resample

__all__ = ["AudioError", "change_speed", "check_rate", "resample"]

SLACK = 0.02  # seconds by which a segment may exceed its recording because of rounding
PART = 256  # files per task of a thread
HEAD = 4096  # bytes that hold the header of an ordinary wav file
# 18 dB above full scale: float samples never reach it, integers stored as floats do
LOUDEST = 8.0
MEMBER = re.compile(r"(.+\.(?:tar|ark)):(\d+)")
SPEED = re.compile(r"(?:(.+\|) sox -t wav -|sox (\S+|'.*')) -t wav - speed ([\d.]+) \|")
BYTES = "the bytes"  # the name of audio without a file, for messages
WIDTHS = ("uint8", "int16", "int32")  # integer types whose full scale is known


def read(
    path: str, start: float = 0.0, duration: float | None = None, rate: int | None = 16000
) -> np.ndarray:
    """(T,) float32 in [-1, 1] at `rate` (None: the file's own): `duration` seconds from `start`."""
    samples, own_rate = load(path, start, duration)
    return samples if rate is None else resample(samples, own_rate, rate)


def load(path: str, start: float = 0.0, duration: float | None = None) -> tuple[np.ndarray, int]:
    """The samples of an entry, not resampled: (T,) float32 and the rate in Hz."""
    samples, rate = _from_entry(path, start, duration)
    return _usable(path, samples, rate, start), rate


def decode(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """The same as `load` for a file `name` with these bytes."""
    with opened(name, data) as reader:
        _check_channels(name, reader.channels)
        return _usable(name, reader.all()[:, 0], reader.rate), reader.rate


def contents(path: str) -> bytes:
    """The bytes of a file or of a tar member."""
    inside = member(path)
    return decoding.contents(path) if inside is None else _read_member(path, *inside)


def info(path: str) -> tuple[int, int, int]:
    """Rate in Hz, channels, samples per channel; decodes the file if the header has no length."""
    changed = _changed_speed(path)
    if changed is not None:
        rate, channels, samples = info(changed[0])
        return rate, channels, math.ceil(samples / changed[1])
    with opened(path, _data(path)) as reader:
        return reader.rate, reader.channels, reader.length()


def durations(paths: Iterable[str], threads: int = 8) -> list[float | AudioError]:
    """Seconds of each entry, or its error; a file is decoded if its header has no length."""

    def measure(batch: Sequence[str]) -> list[float | AudioError]:
        measured: list[float | AudioError] = []
        for path in batch:
            try:
                rate, samples = _wav_header(path) or info(path)[::2]
                measured.append(samples / rate)
            except AudioError as error:
                measured.append(error)
        return measured

    paths = list(paths)
    # many requests at once, because a network disk has a high latency
    with ThreadPoolExecutor(threads) as pool:
        parts = pool.map(
            measure, (paths[start : start + PART] for start in range(0, len(paths), PART))
        )
        return [seconds for part in parts for seconds in part]


def lengths(recordings: Mapping[str, str], base: Path | None = None) -> dict[str, float]:
    """Seconds of each recording whose header can be read.

    Commands are not run. Relative paths start at `base`.
    """
    paths = {key: path for key, path in recordings.items() if path and not is_pipe(path)}
    measured = durations(str((base or Path()) / path) for path in paths.values())
    return {
        key: value for key, value in zip(paths, measured, strict=True) if isinstance(value, float)
    }


def is_pipe(path: str) -> bool:
    """Whether an entry is a command: it ends in `|`, and no file has this name."""
    return path.rstrip().endswith("|") and not os.path.exists(path)


def speed_command(path: str, factor: float) -> str:
    """The sox command of Kaldi's perturb_data_dir_speed.sh, for `factor` times the speed."""
    source = f"{path} sox -t wav -" if is_pipe(path) else f"sox {shlex.quote(path)}"
    return f"{source} -t wav - speed {factor:g} |"


def member(path: str) -> tuple[str, int] | None:
    """(archive, offset) of `<archive>.tar:<offset>` or `.ark:<offset>`; None for other paths."""
    match = MEMBER.fullmatch(path)
    return (match[1], int(match[2])) if match else None


def file_of(path: str) -> str:
    """The file that a path is read from; the archive, for a member."""
    inside = member(path)
    return inside[0] if inside else path


def _changed_speed(command: str) -> tuple[str, float] | None:
    """The audio and the factor of a `speed_command`; None for other paths."""
    match = SPEED.fullmatch(command)
    return (match[1] or shlex.split(match[2])[0], float(match[3])) if match else None


def _usable(path: str, samples: np.ndarray, rate: int, start: float = 0.0) -> np.ndarray:
    if not samples.size:
        raise AudioError(f"{path}: holds no samples")
    lowest, highest = float(samples.min()), float(samples.max())
    if not math.isfinite(lowest) or not math.isfinite(highest):
        finite = np.isfinite(samples)
        seconds = start + int(finite.argmin()) / rate
        bad = samples.size - int(finite.sum())
        raise AudioError(
            f"{path}: {bad} of {samples.size} samples are NaN or infinite; the first at "
            f"{seconds:.3f} s"
        )
    if max(-lowest, highest) > LOUDEST:
        remedy = (
            "if they are 16-bit integers, divide them by 32768 (`ffmpeg -i <file> -af "
            "volume=1/32768 new.wav`)"
        )
        raise AudioError(
            f"{path}: samples reach {max(-lowest, highest):g}, expected values in [-1, 1]; {remedy}"
        )
    return samples


def _from_entry(path: str, start: float, duration: float | None) -> tuple[np.ndarray, int]:
    """(T,) float32 and rate of a part of an entry."""
    if start == 0 and duration is None:
        return _whole(path)
    if not is_pipe(path):
        with opened(path, _data(path)) as reader:
            _check_channels(path, reader.channels)
            if reader.seeks:
                first, count = _stretch(path, start, duration, reader.promised, reader.rate)
                return reader.stretch(first, count)[:, 0], reader.rate
    samples, rate = _whole_again(path, _stamp(path))
    first, count = _stretch(path, start, duration, len(samples), rate)
    return samples[first : first + count], rate


def _whole(path: str) -> tuple[np.ndarray, int]:
    changed = _changed_speed(path)
    if changed is not None:
        samples, rate = load(changed[0])
        return change_speed(samples, changed[1]), rate
    with opened(path, _data(path)) as reader:
        _check_channels(path, reader.channels)
        return reader.all()[:, 0], reader.rate


@lru_cache(maxsize=1)  # the segments of one recording follow each other
def _whole_again(path: str, stamp: tuple[int, int] | None) -> tuple[np.ndarray, int]:
    return _whole(path)


def _stamp(path: str) -> tuple[int, int] | None:
    """Modification time and size of a file; None for a command."""
    if is_pipe(path):
        return None
    status = os.stat(file_of(path))
    return status.st_mtime_ns, status.st_size


def _stretch(
    path: str, start: float, duration: float | None, total: int, rate: int
) -> tuple[int, int]:
    """First sample and number of samples of a segment; `AudioError` if it exceeds the recording."""
    if not total:
        raise AudioError(f"{path}: holds no samples")
    end = start if duration is None else start + duration
    if end > total / rate + SLACK or (start and start >= total / rate):
        segment = f"the segment from {start:.3f} to {end:.3f} s"
        raise AudioError(
            f"{path}: {segment} is outside the recording, which is {total / rate:.3f} s long"
        )
    first = round(start * rate)
    return first, max(0, min(total - first, total if duration is None else round(duration * rate)))


def _data(path: str) -> bytes | None:
    """The data of an entry that is not a file: a command's output or a member of an archive."""
    if is_pipe(path):
        return _run(path)
    inside = member(path)
    return None if inside is None or os.path.exists(path) else _read_member(path, *inside)


def _read_member(path: str, archive: str, offset: int) -> bytes:
    """The content after a tar header, or of a Kaldi archive after an id."""
    try:
        with open(archive, "rb") as stream:
            if archive.endswith(".ark"):
                return _of_kaldi(path, stream, offset)
            stream.seek(offset - tarfile.BLOCKSIZE)
            header = tarfile.TarInfo.frombuf(
                stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape"
            )
            data = _at_most(stream, header.size)
    except AudioError:
        raise
    except (tarfile.HeaderError, ValueError):
        raise AudioError(
            f"{path}: no member of the archive starts at this byte; was the archive written again?"
        ) from None
    except OSError as error:
        raise AudioError(f"{path}: {(error.strerror or 'cannot be opened').lower()}") from None
    if len(data) < header.size:
        raise AudioError(
            f"{path}: truncated, the member should have {header.size} bytes but has {len(data)}"
        )
    return data


def _at_most(stream: BinaryIO, size: int) -> bytes:
    """`size` bytes, or fewer if the file ends first.

    Never allocates what a damaged header promises: that may be more than memory holds.
    """
    return stream.read(max(0, min(size, os.fstat(stream.fileno()).st_size - stream.tell())))


def _of_kaldi(path: str, stream: BinaryIO, offset: int) -> bytes:
    """A wav file, as wav-copy writes them, or what kaldiio marks as AUDIO."""
    stream.seek(offset)
    start = stream.read(8)
    if start[:4] == b"RIFF":
        stream.seek(offset)
        size = 8 + int.from_bytes(start[4:], "little")
    elif start[:5] == b"AUDIO":
        stream.seek(offset + 6)
        size = int.from_bytes(stream.read(start[5]), "little")
    elif start[:4] == b"fLaC":
        stream.seek(offset)
        most = headers.flac_room(stream)
        if most is None:
            raise AudioError(
                f"{path}: the FLAC does not say how long it is, so nothing says where it ends in "
                "the archive; write the archive again with kaldiio's soundfile_flac, or as wav"
            )
        stream.seek(offset)
        return _at_most(stream, most)  # the decoder ends at the length in the header
    else:
        holds = "features" if start[:2] == b"\0B" else "no wav file"
        raise AudioError(f"{path}: the Kaldi archive has {holds} there, expected a wav file")
    data = _at_most(stream, size)
    if len(data) < size:
        raise AudioError(
            f"{path}: truncated, the archive should have {size} bytes there but has {len(data)}"
        )
    return data


def _run(command: str) -> bytes:
    shell = ["bash", "-o", "pipefail", "-c", command.rstrip().removesuffix("|")]
    done = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        message = done.stderr.decode(errors="replace").strip().split("\n")[-1]
        raise AudioError(
            f"{command}: the command failed with status {done.returncode}: "
            f"{message or 'it printed no error'}"
        )
    if not done.stdout:
        raise AudioError(
            f"{command}: the command printed nothing; expected wav or flac on its standard output"
        )
    return done.stdout


def _check_channels(path: str, channels: int) -> None:
    if channels != 1:
        command = path.rstrip().removesuffix("|").rstrip() + " | sox -t wav -"
        source = command if is_pipe(path) else f"sox {shlex.quote(path)}"
        choose = (
            f"select one in wav.scp (`{source} -t wav - remix 1 |`) or average them (`remix -`)"
        )
        raise AudioError(f"{path}: {channels} channels, expected 1; {choose}")


def _wav_header(path: str) -> tuple[int, int] | None:
    """Rate and samples from the header of an ordinary wav file, None for any other file.

    Five times as fast as libsndfile.
    """
    if not path.endswith(".wav"):
        return None
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # do not block on a named pipe
    except OSError:
        return None
    try:
        status = os.fstat(handle)
        head, size = os.read(handle, HEAD) if stat.S_ISREG(status.st_mode) else b"", status.st_size
    finally:
        os.close(handle)
    samples = headers.samples(io.BytesIO(head), len(head), head[:4])
    rate, block = (0, 0) if samples is None else headers.plain(samples.form)
    if not block or not 0 < samples.size <= size - samples.start <= samples.size + headers.BEHIND:
        return None
    return check_rate(rate, path), samples.size // block


# -- files of any kind ------------------------------------------------------


def listen(path: str, channel: int | None = None) -> tuple[np.ndarray, int, int]:
    """Read a file with any number of channels.

    channel: the channel to take, from 0; None for the mean of all. Returns samples (T,), the rate
    in Hz and the number of channels.
    """
    with opened(path) as reader:
        return _selected(reader, channel)


def listen_to(data: bytes, channel: int | None = None) -> tuple[np.ndarray, int, int]:
    """`listen` for the bytes of a file."""
    with opened(BYTES, data) as reader:
        return _selected(reader, channel)


def _selected(reader: decoding.Reader, channel: int | None) -> tuple[np.ndarray, int, int]:
    samples = one_channel(reader.all(), channel, reader.name, reader.rate)
    return samples, reader.rate, reader.channels


def blocks(
    path: str, seconds: float, channel: int | None = None
) -> Iterator[tuple[np.ndarray, int]]:
    """As `listen`, in blocks of `seconds`, the last one shorter: samples (T,) and their rate.

    A truncated file raises AudioError only at its end.
    """
    with opened(path) as reader:
        count = 0
        for part in reader.blocks(max(1, round(seconds * reader.rate))):
            yield one_channel(part, channel, path, reader.rate, count / reader.rate), reader.rate
            count += len(part)
        if not count:
            raise AudioError(f"{path}: holds no samples")


def one_channel(
    samples: np.ndarray | torch.Tensor,
    channel: int | None = None,
    name: str = "the samples",
    rate: int = 1,
    start: float = 0.0,
) -> np.ndarray:
    """(T,) or (T, C) -> (T,) float32: one channel, counted from 0, or the mean of all.

    Takes floats in [-1, 1] or uint8, int16 and int32, which are scaled by their full scale. `name`,
    `rate` and `start` (seconds) are used in error messages.
    """
    samples = _array(samples)
    if samples.ndim not in (1, 2) or not samples.shape[-1]:
        raise AudioError(
            f"{name}: expected samples (T,) or (T, channels), got an array of shape {samples.shape}"
        )
    if samples.ndim == 2 and samples.shape[1] > samples.shape[0] > 0:
        raise AudioError(
            f"{name}: {samples.shape[1]} channels of {samples.shape[0]} samples; expected an "
            "array (T, channels), as samples.T makes it of (channels, T)"
        )
    samples = _floats(samples, name)
    if samples.ndim == 2:
        count = samples.shape[1]
        if channel is not None and not 0 <= channel < count:
            raise AudioError(
                f"{name}: there is no channel {channel}; its {count} channels are counted from 0"
            )
        samples = (
            samples.mean(axis=1) if channel is None and count > 1 else samples[:, channel or 0]
        )
    # torch accepts neither arrays with negative strides nor read-only ones
    samples = np.require(samples, np.float32, ["C_CONTIGUOUS", "WRITEABLE"])
    return _usable(name, samples, rate, start)


def _array(samples: np.ndarray | torch.Tensor | Sequence[float]) -> np.ndarray:
    if isinstance(samples, torch.Tensor):
        samples = samples.detach().cpu()
        # numpy has no bfloat16
        samples = samples.float() if samples.is_floating_point() else samples
    try:
        return np.asarray(samples)
    except ValueError:  # rows of different lengths
        raise AudioError(
            f"the samples: a {type(samples).__name__} of parts of different lengths, expected an "
            "array (T,) or (T, channels)"
        ) from None


def _floats(samples: np.ndarray, name: str) -> np.ndarray:
    """Integers divided by the full scale of their type, as in soundfile; AudioError for others."""
    kind = samples.dtype.name
    if kind in WIDTHS:
        if (
            kind == "int32"
            and samples.min() >= -(1 << 15)
            and samples.max() < 1 << 15
            and (samples & 255).any()
        ):
            raise AudioError(
                f"{name}: the dtype is int32 but all values fit in 16 bits; convert them to int16"
            )
        limits = np.iinfo(samples.dtype)
        middle = (int(limits.max) + int(limits.min) + 1) // 2  # 0, and 128 of unsigned bytes
        return (samples.astype(np.float64) - middle) / (int(limits.max) + 1 - middle)
    if not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(
            f"{name}: the dtype is {kind}, expected floats in [-1, 1] or one of {', '.join(WIDTHS)}"
        )
    return samples
