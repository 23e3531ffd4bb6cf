"""Stage 1: audio to features, archives and normalisation statistics, in shards for processes.

A shard is a fixed number of utterances, so archives and sums do not depend on the number of
processes. Memory holds some shards and, in each process, the audio of one utterance: it does not
grow with the data.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import count, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from tqdm import tqdm

from asrtool.data import audio, features
from asrtool.data.config import DataConfig
from asrtool.data.fbank import Fbank
from asrtool.data.kaldi import datadir
from asrtool.errors import UserError
from asrtool.types import Utterance

SHARD = 500  # utterances of a shard, before speed copies
# computing frames takes far longer, so even small sets are divided among processes
FRAME_SHARDS, SMALLEST_FRAME_SHARD = 32, 20
POLL = 0.3  # seconds between updates of the progress bar

_progress = None  # in a worker: the shared count of finished utterances


class FrameMaker(Protocol):
    """A network whose frames are stored; it is sent to the worker processes."""

    dim: int  # D
    batch_seconds: float  # audio that is computed together; 0: one utterance after the other
    max_seconds: float | None  # the longest audio that it takes

    def __call__(self, samples: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Samples (T,) of several utterances -> their frames (S, D), float16."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some utterances, and the archive they go to."""

    utterances: Sequence[Utterance]
    archive: Path
    final: Path  # final path of the archive
    config: DataConfig
    training: bool
    frames: FrameMaker | None = None  # where its frames are stored instead of features


@dataclass
class ExtractedShard:
    """The output of a shard."""

    utterances: list[Utterance] = field(default_factory=list)  # including speed copies
    skipped: list[tuple[str, str]] = field(default_factory=list)  # id, reason
    # utterances that were resampled
    rates: Counter[int] = field(default_factory=Counter)
    stats: features.CmvnStats | None = None  # for a training set of fbank features
    long: int = 0  # utterances without frames: longer than the network reads


@dataclass
class Summary:
    """The output of a set: rows and seconds with speed copies; the rest as in `ExtractedShard`."""

    total: int  # utterances of the data directory
    rows: int = 0
    seconds: float = 0.0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    rates: Counter[int] = field(default_factory=Counter)
    stats: features.CmvnStats | None = None
    long: int = 0

    def add(self, result: ExtractedShard) -> None:
        self.rows += len(result.utterances)
        self.seconds += sum(row.duration for row in result.utterances)
        self.skipped += result.skipped
        self.rates += result.rates
        self.long += result.long
        if self.stats is None:
            self.stats = result.stats
        elif result.stats is not None:
            self.stats += result.stats


def extract(
    data: Path,
    config: DataConfig,
    folder: Path,
    *,
    final: Path,
    training: bool,
    nj: int,
    frames: FrameMaker | None = None,
) -> Summary:
    """Write the data directory `data` with features to `folder`, which will become `final`.

    A training set also gets copies at `augment.speeds`, and the statistics for `Cmvn`. If features
    are not stored (`features: online`, or waveforms), only lengths and statistics are computed.
    Durations are those of the audio. frames: computes what `features: stored_frames` stores.
    """
    utterances = datadir.read(data, measure=False)
    total = len(utterances)
    summary = Summary(total)
    size = SHARD if frames is None else min(SHARD, max(SMALLEST_FRAME_SHARD, total // FRAME_SHARDS))
    shards = (
        replace(shard, frames=frames)
        for shard in cut(utterances, config, folder, final, training, size)
    )
    workers = min(nj, math.ceil(total / size))
    segmented = (data / "segments").exists()
    bar = tqdm(total=total, unit="utt", desc=final.name, disable=None)
    with datadir.Writer(folder, segmented) as writer, bar:
        for result in process(shards, workers, bar):
            summary.add(result)
            for row in result.utterances:
                writer.add(row)
    return summary


def cut(
    utterances: Iterable[Utterance],
    config: DataConfig,
    folder: Path,
    final: Path,
    training: bool,
    size: int = SHARD,
) -> Iterator[Shard]:
    """Shards of `size` utterances."""
    rows = iter(utterances)
    for number in count(1):
        part = list(islice(rows, size))
        if not part:
            return
        name = f"feats.{number}.ark"
        yield Shard(
            utterances=part,
            archive=folder / name,
            final=final / name,
            config=config,
            training=training,
        )


# -- processes -------------------------------------------------------------


def process(shards: Iterator[Shard], nj: int, bar: tqdm) -> Iterator[ExtractedShard]:
    """The results of all shards in order."""
    if nj <= 1:
        threads = torch.get_num_threads()
        # one thread, as in worker processes: another order of summation would change the last bit
        torch.set_num_threads(1)
        try:
            yield from (extract_shard(shard, bar.update) for shard in shards)
        finally:
            torch.set_num_threads(threads)
        return
    context = get_context("spawn")  # a fork would inherit the locks of torch's threads
    done = context.Value("Q", 0)
    with ProcessPoolExecutor(
        nj, mp_context=context, initializer=start_worker, initargs=(done,)
    ) as pool:
        # two shards per process are in flight: enough to keep all busy, and a bound on memory
        waiting = deque(pool.submit(extract_shard, shard) for shard in islice(shards, 2 * nj))
        try:
            while waiting:
                while not wait([waiting[0]], POLL).done:
                    bar.update(done.value - bar.n)
                yield waiting.popleft().result()
                waiting.extend(pool.submit(extract_shard, shard) for shard in islice(shards, 1))
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, possibly for lack of memory; lower --nj"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    bar.update(done.value - bar.n)


def start_worker(done: object) -> None:
    """Set up a worker: one thread, and an end with its parent (even by kill -9) or at Ctrl-C."""
    global _progress
    _progress = done
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def follow() -> None:
        # exit without cleanup: the parent is gone, and its folder is a leftover of the next run
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def count_in_worker(number: int) -> None:
    with _progress.get_lock():
        _progress.value += number


# -- one shard -------------------------------------------------------------


def extract_shard(
    shard: Shard, advance: Callable[[int], object] = count_in_worker
) -> ExtractedShard:
    """Read, compute and write; unusable utterances are left out and listed in `skipped`."""
    if shard.frames is not None:
        return extract_frames(shard, shard.frames, advance)
    config, result = shard.config, ExtractedShard()
    fbank = Fbank(config.fbank) if config.input == "fbank" else None
    if fbank and shard.training:
        result.stats = features.CmvnStats(config.fbank.num_mel_bins)
    speeds = features.copies(config) if shard.training else (1.0,)
    stored = fbank and config.features == "stored"
    with features.ArkWriter(shard.archive, shard.final) if stored else nullcontext() as writer:
        for utterance in shard.utterances:
            try:
                samples, rate = read_samples(utterance, config.fbank.rate)
                versions = [
                    (speed, *measure(samples, speed, fbank, utterance, config.fbank.rate))
                    for speed in speeds
                ]
            except audio.AudioError as error:
                result.skipped.append((utterance.id, str(error)))
                # All copies or none: an utterance must not be in the set at some of the speeds
                # only.
                versions = []
            for speed, seconds, num_frames, matrix in versions:
                row = replace(
                    at_speed(utterance, speed),
                    duration=seconds,
                    num_frames=num_frames,
                    features=None,
                )
                if result.stats:
                    result.stats.add(matrix)
                if writer:
                    row = replace(row, features=writer.write(row.id, matrix))
                result.utterances.append(row)
            if versions and rate != config.fbank.rate:
                result.rates[rate] += 1
            advance(1)
    return result


def extract_frames(
    shard: Shard, make: FrameMaker, advance: Callable[[int], object]
) -> ExtractedShard:
    """`extract_shard` for a network's frames, with as much audio at once as `make` asks for.

    Utterances longer than it reads are left out of a training set. Other sets keep them without a
    frame, because they can be recognised in windows.
    """
    result, made = ExtractedShard(), []
    # by duration, so that utterances computed together need little padding
    ordered = sorted(enumerate(shard.utterances), key=lambda item: (item[1].duration, item[0]))

    def keep(index: int, row: Utterance, matrix: np.ndarray) -> None:
        if not np.isfinite(matrix).all():
            result.skipped.append((row.id, f"{row.audio}: NaN in the frames"))
            return
        reference = writer.write(row.id, matrix)
        # utt2num_frames must be at least 1
        made.append((index, replace(row, features=reference, num_frames=max(1, len(matrix)))))

    def write(waiting: Sequence[tuple[int, Utterance, np.ndarray]]) -> None:
        matrices = make([samples for *_, samples in waiting])
        for (index, row, _), matrix in zip(waiting, matrices, strict=True):
            keep(index, row, matrix)

    with features.ArkWriter(shard.archive, shard.final) as writer:
        waiting: list[tuple[int, Utterance, np.ndarray]] = []
        for index, utterance in ordered if make.batch_seconds else enumerate(shard.utterances):
            for row, samples in read_copies(shard, utterance, result):
                if make.max_seconds is not None and row.duration > make.max_seconds:
                    result.long += 1
                    keep(index, row, np.zeros((0, make.dim), np.float16))
                    continue
                waiting.append((index, row, samples))
                # in ascending order, so this row is the longest: the product is padded audio
                if len(waiting) * row.duration >= make.batch_seconds:
                    write(waiting)
                    waiting = []
            advance(1)
        if waiting:
            write(waiting)
    result.utterances = [row for _, row in sorted(made, key=lambda item: item[0])]
    return result


def read_copies(
    shard: Shard, utterance: Utterance, result: ExtractedShard
) -> Iterator[tuple[Utterance, np.ndarray]]:
    """An utterance at every speed, with its samples (T,); unusable ones go to `result.skipped`."""
    rate = shard.config.fbank.rate
    try:
        samples, own_rate = read_samples(utterance, rate)
    except audio.AudioError as error:
        result.skipped.append((utterance.id, str(error)))
        return
    if own_rate != rate:
        result.rates[own_rate] += 1
    for speed in features.copies(shard.config) if shard.training else (1.0,):
        row = at_speed(utterance, speed)
        copy = samples if speed == 1.0 else audio.change_speed(samples, speed)
        row = replace(row, duration=len(copy) / rate)
        limit = shard.frames.max_seconds
        if not len(copy):
            result.skipped.append((row.id, f"{row.audio}: holds no samples"))
        elif shard.training and limit is not None and row.duration > limit:
            reason = f"{row.duration:.2f} s long, and the front end reads at most {limit:g} s"
            result.skipped.append((row.id, f"{row.audio}: {reason}"))
        else:
            yield row, copy


def read_samples(utterance: Utterance, rate: int) -> tuple[np.ndarray, int]:
    """The utterance's samples (T,) at `rate`, and the original rate of its audio."""
    samples, own_rate = audio.load(utterance.audio, *utterance.stretch)
    return audio.resample(samples, own_rate, rate), own_rate


def measure(
    samples: np.ndarray, speed: float, fbank: Fbank | None, utterance: Utterance, rate: int
) -> tuple[float, int, np.ndarray | None]:
    """Seconds at `speed`, number of frames (samples without `fbank`), and the features (T, F)."""
    samples = samples if speed == 1.0 else audio.change_speed(samples, speed)
    if fbank is None:
        return len(samples) / rate, len(samples), None
    if not fbank.config.num_frames(len(samples)):
        short = f"{len(samples) / rate * 1000:.1f} ms"
        raise audio.AudioError(
            f"{utterance.audio}: {short} of audio are too short for one frame of features"
        )
    dither = fbank.config.dither > 0
    with torch.random.fork_rng(devices=[], enabled=dither):
        if dither:  # the same noise in whichever process
            torch.manual_seed(zlib.crc32(f"{speed:g} {utterance.id}".encode()))
        matrix = fbank(torch.from_numpy(samples)).numpy()
    return len(samples) / rate, len(matrix), matrix


def at_speed(utterance: Utterance, speed: float) -> Utterance:
    """The copy of an utterance at another speed, named as in Kaldi: `sp0.9-<id>`.

    Its audio is the sox command for it; its duration is still to be measured.
    """
    if speed == 1.0:
        return utterance
    prefix = f"sp{speed:g}-"
    return replace(
        utterance,
        id=prefix + utterance.id,
        speaker=prefix + utterance.speaker,
        start=utterance.start / speed,
        recording=utterance.recording and prefix + utterance.recording,
        audio=audio.speed_command(utterance.audio, speed),
    )
