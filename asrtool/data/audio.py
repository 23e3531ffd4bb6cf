"""Audio through soundfile: wav, flac, ogg, opus, mp3, NIST sphere, and shell commands that end in `|` and print one.

`<file>.tar:<offset>` is a member of a tar archive (a shard), whose content starts at this byte. The command that plays
audio at another speed (`speed_command`) is computed here, so sox need not be installed for it.

Refused, with one sentence each: a missing, empty, truncated or damaged file, more than one channel (only the user
knows which one is meant), NaN or infinite samples. Not refused: another sampling rate; it is resampled, and stage 1
counts it.
"""

from __future__ import annotations

import io
import math
import os
import re
import shlex
import struct
import subprocess
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch

from asrtool import torchaudio_adapter

SLACK = 0.02                                 # seconds by which a segment may exceed its recording (rounding)
PART = 256                                   # files that a thread measures in one go
HEAD = 4096                                  # bytes that hold the header of an ordinary wav file
STREAMED = 0x7FFF0000                        # sizes from here on stand for "not known when the header was written"
MEMBER = re.compile(r"(.+\.tar):(\d+)")
SPEED = re.compile(r"(?:(.+\|) sox -t wav -|sox (\S+|'.*')) -t wav - speed ([\d.]+) \|")


class AudioError(Exception):
    """Audio that cannot be used; the message names the file or command and says why."""


def read(path: str, start: float = 0.0, duration: float | None = None, rate: int | None = 16000) -> np.ndarray:
    """(T,) float32 in [-1, 1] at `rate` (None: the file's own): `duration` seconds from `start`, or all the rest."""
    samples, found = load(path, start, duration)
    return samples if rate is None else resample(samples, found, rate)


def load(path: str, start: float = 0.0, duration: float | None = None) -> tuple[np.ndarray, int]:
    """What the file holds, not resampled: (T,) float32 and its rate in Hz."""
    with _told(path):
        samples, rate = _from_source(path, start, duration)
    return _usable(path, samples, rate, start), rate


def decode(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """What `load` gives for a file `name` that holds these bytes."""
    with _told(name):
        samples, rate = _from_file(name, 0.0, None, data)
    return _usable(name, samples, rate), rate


def contents(path: str) -> bytes:
    """The bytes of a file or of a tar member."""
    found = member(path)
    if found is not None:
        return _read_member(path, *found)
    try:
        with open(path, "rb") as stream:
            return stream.read()
    except OSError as error:
        raise AudioError(f"{path}: {(error.strerror or 'cannot be opened').lower()}") from None


def info(path: str) -> tuple[int, int, int]:
    """Rate in Hz, channels, samples per channel: from the header alone; a pipe has to be run for it."""
    changed = _changed_speed(path)
    if changed is not None:
        rate, channels, samples = info(changed[0])
        return rate, channels, math.ceil(samples / changed[1])
    with _told(path), _open(path) as file:
        return file.samplerate, file.channels, file.frames


def durations(paths: Iterable[str], threads: int = 8) -> list[float | AudioError]:
    """Seconds that each header declares, or what is wrong with it: a shorter wav file is truncated."""
    def measure(some: Sequence[str]) -> list[float | AudioError]:
        found: list[float | AudioError] = []
        for path in some:
            try:
                rate, samples = _wav_header(path) or info(path)[::2]
                found.append(samples / rate)
            except AudioError as error:
                found.append(error)
        return found

    paths = list(paths)
    with ThreadPoolExecutor(threads) as pool:                # a network disk answers slowly, but many at once
        parts = pool.map(measure, (paths[start:start + PART] for start in range(0, len(paths), PART)))
        return [seconds for part in parts for seconds in part]


def lengths(recordings: Mapping[str, str], base: Path | None = None) -> dict[str, float]:
    """Seconds of every recording whose header can be read; commands are not run. Relative paths start at `base`."""
    paths = {key: path for key, path in recordings.items() if path and not is_pipe(path)}
    measured = durations(str((base or Path()) / path) for path in paths.values())
    return {key: value for key, value in zip(paths, measured, strict=True) if isinstance(value, float)}


def is_pipe(path: str) -> bool:
    return path.rstrip().endswith("|")


def speed_command(path: str, factor: float) -> str:
    """The sox command of Kaldi's perturb_data_dir_speed.sh for audio that is played `factor` times as fast."""
    source = f"{path} sox -t wav -" if is_pipe(path) else f"sox {shlex.quote(path)}"
    return f"{source} -t wav - speed {factor:g} |"


def member(path: str) -> tuple[str, int] | None:
    """(archive, offset) of a reference `<archive>.tar:<offset>`, None for other paths."""
    found = MEMBER.fullmatch(path)
    return (found[1], int(found[2])) if found else None


def file_of(path: str) -> str:
    """The file that must exist for a path to be read; of a member its archive."""
    found = member(path)
    return found[0] if found else path


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Band-limited interpolation (torchaudio's windowed sinc) of (T,) to (ceil(T * to_hz / from_hz),)."""
    if from_hz == to_hz:
        return samples
    return _resampler(from_hz, to_hz)(torch.from_numpy(samples)).numpy()


def change_speed(samples: np.ndarray, factor: float) -> np.ndarray:
    """Played `factor` times as fast, pitch included, as sox's `speed` does it: (T,) to (ceil(T / factor),).

    The factor is rounded to a fraction of two-digit numbers: exact for 0.9 and 1.1, within 0.01 % for others near 1.
    """
    ratio = Fraction(factor).limit_denominator(100)
    if ratio <= 0:
        raise ValueError(f"speed factor {factor} is too small; expected at least 0.01")
    return resample(samples, ratio.numerator, ratio.denominator)


@lru_cache(maxsize=32)
def _resampler(from_hz: int, to_hz: int) -> torch.nn.Module:
    return torchaudio_adapter.require().transforms.Resample(from_hz, to_hz)


def _changed_speed(command: str) -> tuple[str, float] | None:
    """The audio and the factor that a `speed_command` was made of; None for other paths."""
    found = SPEED.fullmatch(command)
    return (found[1] or shlex.split(found[2])[0], float(found[3])) if found else None


@contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{path}: damaged or truncated, or not audio ({error.error_string.strip('. ')})") from None


def _usable(path: str, samples: np.ndarray, rate: int, start: float = 0.0) -> np.ndarray:
    if not samples.size:
        raise AudioError(f"{path}: holds no samples")
    finite = np.isfinite(samples)
    if not finite.all():
        where = start + int(finite.argmin()) / rate
        bad = samples.size - int(finite.sum())
        raise AudioError(f"{path}: {bad} of {samples.size} samples are NaN or infinite, the first at {where:.3f} s")
    return samples


def _from_source(path: str, start: float, duration: float | None) -> tuple[np.ndarray, int]:
    """A stretch of a file, of a tar member, or of what a command prints."""
    if not is_pipe(path):
        return _from_file(path, start, duration)
    samples, rate = _from_pipe(path) if start == 0 and duration is None else _from_pipe_again(path)
    _check_segment(path, start, duration, len(samples) / rate)
    first = round(start * rate)
    return samples[first:] if duration is None else samples[first:first + round(duration * rate)], rate


def _open(path: str, data: bytes | None = None) -> soundfile.SoundFile:
    if is_pipe(path):
        return soundfile.SoundFile(io.BytesIO(_run(path)))
    if data is None and (found := member(path)) is not None:
        data = _read_member(path, *found)
    if data is not None:
        return soundfile.SoundFile(io.BytesIO(data))
    try:
        size = os.stat(path).st_size
    except OSError as error:
        relative = "" if os.path.isabs(path) else f" (relative paths start at {os.getcwd()})"
        raise AudioError(f"{path}: {(error.strerror or 'cannot be opened').lower()}{relative}") from None
    if size == 0:
        raise AudioError(f"{path}: the file is empty (0 bytes)")
    return soundfile.SoundFile(path)


def _read_member(path: str, archive: str, offset: int) -> bytes:
    """The content that follows a tar header."""
    try:
        with open(archive, "rb") as stream:
            stream.seek(offset - tarfile.BLOCKSIZE)
            header = tarfile.TarInfo.frombuf(stream.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
            data = stream.read(header.size)
    except (tarfile.HeaderError, ValueError):
        raise AudioError(f"{path}: no member of the archive starts there; is it the archive that it was?") from None
    except OSError as error:
        raise AudioError(f"{path}: {(error.strerror or 'cannot be opened').lower()}") from None
    if len(data) < header.size:
        raise AudioError(f"{path}: truncated, the member has {header.size} bytes, {len(data)} are there")
    return data


def _wav_header(path: str) -> tuple[int, int] | None:
    """Rate and samples of an ordinary wav file, five times as fast as libsndfile; None: let libsndfile look at it."""
    if not path.endswith(".wav"):
        return None
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        head, size = os.read(handle, HEAD), os.fstat(handle).st_size
    finally:
        os.close(handle)
    if head[:4] != b"RIFF" or head[8:16] != b"WAVEfmt ":
        return None
    at, rate, width, length = 12, 0, 0, 0
    while at + 8 <= len(head):
        kind, length = head[at:at + 4], int.from_bytes(head[at + 4:at + 8], "little")
        if kind == b"fmt ":
            rate, width = struct.unpack_from("<I4xH", head, at + 12) if at + 22 <= len(head) else (0, 0)
        elif kind == b"data":
            break
        at += 8 + length + length % 2
    if head[at:at + 4] != b"data" or not rate or not width or not 0 < length < STREAMED:
        return None
    if length > size - at - 8:
        there = size - at - 8
        raise AudioError(f"{path}: truncated, the header promises {length} bytes of samples, it holds {there}")
    return rate, length // width


def _from_file(path: str, start: float, duration: float | None, data: bytes | None = None) -> tuple[np.ndarray, int]:
    with _open(path, data) as file:
        rate, total = file.samplerate, file.frames
        _check_channels(path, file.channels)
        _check_header(path, file)
        _check_segment(path, start, duration, total / rate)
        first = round(start * rate)
        count = max(0, min(total - first, total if duration is None else round(duration * rate)))
        file.seek(min(first, total))
        samples = file.read(count, dtype="float32")
    if len(samples) < count:
        seconds = (first + len(samples)) / rate
        raise AudioError(f"{path}: truncated, the header promises {total / rate:.2f} s, it ends at {seconds:.2f} s")
    return samples, rate


def _from_pipe(command: str) -> tuple[np.ndarray, int]:
    changed = _changed_speed(command)
    if changed is not None:
        samples, rate = load(changed[0])
        return change_speed(samples, changed[1]), rate
    with _open(command) as file:
        _check_channels(command, file.channels)
        return file.read(dtype="float32"), file.samplerate


_from_pipe_again = lru_cache(maxsize=1)(_from_pipe)      # the segments of one recording follow each other


def _run(command: str) -> bytes:
    shell = ["bash", "-o", "pipefail", "-c", command.rstrip().removesuffix("|")]
    done = subprocess.run(shell, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().split("\n")[-1]
        raise AudioError(f"{command}: the command failed with status {done.returncode}: {said or 'it said nothing'}")
    if not done.stdout:
        raise AudioError(f"{command}: the command printed nothing; expected wav or flac on its standard output")
    return done.stdout


def _check_channels(path: str, channels: int) -> None:
    if channels != 1:
        source = path.rstrip().removesuffix("|").rstrip() + " | sox -t wav -" if is_pipe(path) else f"sox {path}"
        choose = f"choose one in wav.scp (`{source} -t wav - remix 1 |`) or take their mean (`remix -`)"
        raise AudioError(f"{path}: {channels} channels, expected 1; {choose}")


def _check_header(path: str, file: soundfile.SoundFile) -> None:
    """libsndfile shortens a truncated wav file without a word, except in its log."""
    found = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
    if file.format == "WAV" and found and int(found[2]) < int(found[1]) < STREAMED:
        raise AudioError(f"{path}: truncated, the header promises {found[1]} bytes of samples, it holds {found[2]}")


def _check_segment(path: str, start: float, duration: float | None, total: float) -> None:
    end = start if duration is None else start + duration
    if end > total + SLACK or (start and start >= total):
        segment = f"the segment from {start:.3f} to {end:.3f} s"
        raise AudioError(f"{path}: {segment} does not lie in the recording, which has {total:.3f} s")


# -- audio of any kind -----------------------------------------------------

def listen(path: str, channel: int | None = None) -> tuple[np.ndarray, int, int]:
    """As `load`, of any number of channels: samples (T,) of number `channel`, from 0, or the mean of all; rate in Hz;
    how many channels there are."""
    with _told(path), _open(path) as file:
        _check_header(path, file)
        rate, promised = file.samplerate, file.frames
        samples = file.read(dtype="float32", always_2d=True)
    if len(samples) < promised < STREAMED:
        promised, found = promised / rate, len(samples) / rate
        raise AudioError(f"{path}: truncated, the header promises {promised:.2f} s, it ends at {found:.2f} s")
    return one_channel(samples, channel, path, rate), rate, samples.shape[1]


def blocks(path: str, seconds: float, channel: int | None = None) -> Iterator[tuple[np.ndarray, int]]:
    """As `listen`, in pieces of so many seconds, the last one shorter: samples (T,) and their rate."""
    with _told(path), _open(path) as file:
        _check_header(path, file)
        for part in file.blocks(max(1, round(seconds * file.samplerate)), dtype="float32", always_2d=True):
            yield one_channel(part, channel, path, file.samplerate), file.samplerate


def one_channel(
    samples: np.ndarray, channel: int | None = None, name: str = "the samples", rate: int = 1
) -> np.ndarray:
    """(T,) or (T, C), floats or whole numbers of any width -> (T,) float32: one channel, from 0, or the mean of all.

    Whole numbers are divided by the largest of their type; `name` and `rate` are for what an error says.
    """
    if samples.ndim not in (1, 2) or not samples.size:
        raise AudioError(f"{name}: expected samples (T,) or (T, channels), got an array of shape {samples.shape}")
    if np.issubdtype(samples.dtype, np.integer):
        limits = np.iinfo(samples.dtype)
        middle = (int(limits.max) + int(limits.min) + 1) // 2           # 0, and 128 of unsigned bytes
        samples = (samples.astype(np.float64) - middle) / (int(limits.max) + 1 - middle)
    if samples.ndim == 2:
        count = samples.shape[1]
        if channel is not None and not 0 <= channel < count:
            raise AudioError(f"{name}: has no channel {channel}; its {count} channels count from 0")
        samples = samples.mean(axis=1) if channel is None and count > 1 else samples[:, channel or 0]
    return _usable(name, samples.astype(np.float32, copy=False), rate)
