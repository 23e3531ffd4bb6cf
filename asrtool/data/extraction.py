"""Stage 1's work: audio to features, archives and normalisation statistics, in shards that
processes take one by one.

A shard is a fixed number of utterances, so archives and sums do not depend on how many processes
there are. Memory holds some shards and, in each process, the audio of one utterance: it does not
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

import numpy as np
import torch
from tqdm import tqdm

from asrtool.data import audio, features
from asrtool.data.config import DataConfig
from asrtool.data.fbank import Fbank
from asrtool.data.kaldi import datadir
from asrtool.types import Utterance

SHARD = 500  # utterances, before speed copies
POLL = 0.3  # seconds between looks at the workers' progress

_progress = None  # in a worker: the shared count of utterances done


class ExtractionError(Exception):
    """Stage 1 cannot go on; one sentence says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some utterances, and the archive they go to."""

    utterances: Sequence[Utterance]
    archive: Path
    final: Path  # where the archive will lie in the end
    config: DataConfig
    training: bool


@dataclass
class ExtractedShard:
    """What came of a shard."""

    utterances: list[Utterance] = field(default_factory=list)  # with speed copies
    skipped: list[tuple[str, str]] = field(default_factory=list)  # id, why
    # utterances that had another sampling rate
    rates: Counter[int] = field(default_factory=Counter)
    stats: features.CmvnStats | None = None  # of a training set of fbank features


@dataclass
class Summary:
    """What came of a set: rows with speed copies, and their seconds; the rest as in `Result`."""

    total: int  # utterances of the data directory
    rows: int = 0
    seconds: float = 0.0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    rates: Counter[int] = field(default_factory=Counter)
    stats: features.CmvnStats | None = None

    def add(self, result: ExtractedShard) -> None:
        self.rows += len(result.utterances)
        self.seconds += sum(row.duration for row in result.utterances)
        self.skipped += result.skipped
        self.rates += result.rates
        if self.stats is None:
            self.stats = result.stats
        elif result.stats is not None:
            self.stats += result.stats


def extract(
    data: Path, config: DataConfig, folder: Path, *, final: Path, training: bool, nj: int
) -> Summary:
    """Write the data directory `data` with features into `folder`; archives are referred to as
    lying in `final`.

    For a training set the copies at `augment.speeds` and the statistics for `Cmvn` are made too.
    Where features are not stored (`features: online`, or waveforms), only lengths and statistics
    are. Durations are those of the audio.
    """
    total, utterances = datadir.iterate(data)
    summary = Summary(total)
    shards = cut(utterances, config, folder, final, training)
    workers = min(nj, math.ceil(total / SHARD))
    segmented = (data / "segments").exists()
    bar = tqdm(total=total, unit="utt", desc=final.name, disable=None)
    with datadir.Writer(folder, segmented) as writer, bar:
        for result in process(shards, workers, bar):
            summary.add(result)
            for row in result.utterances:
                writer.add(row)
    return summary


def cut(
    utterances: Iterable[Utterance], config: DataConfig, folder: Path, final: Path, training: bool
) -> Iterator[Shard]:
    """Shards of `SHARD` utterances."""
    rows = iter(utterances)
    for number in count(1):
        part = list(islice(rows, SHARD))
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
    """The results of all shards in their order."""
    if nj <= 1:
        threads = torch.get_num_threads()
        # as in the workers: sums in another order would differ in the last bit
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
        waiting = deque(pool.submit(extract_shard, shard) for shard in islice(shards, 2 * nj))
        try:
            while waiting:
                while not wait([waiting[0]], POLL).done:
                    bar.update(done.value - bar.n)
                yield waiting.popleft().result()
                waiting.extend(pool.submit(extract_shard, shard) for shard in islice(shards, 1))
        except BrokenProcessPool:
            raise ExtractionError(
                "a worker process was killed, for lack of memory perhaps; lower --nj"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    bar.update(done.value - bar.n)


def start_worker(done: object) -> None:
    """Set up a worker: one thread, dead when its parent is (even by kill -9) or at Ctrl-C."""
    global _progress
    _progress = done
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def follow() -> None:
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
    """Read, compute and write; an utterance that cannot be used is left out and named in
    `skipped`.
    """
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


def read_samples(utterance: Utterance, rate: int) -> tuple[np.ndarray, int]:
    """The utterance's samples (T,) at `rate`, and the rate that its audio had."""
    samples, own_rate = audio.load(utterance.audio, *utterance.stretch)
    return audio.resample(samples, own_rate, rate), own_rate


def measure(
    samples: np.ndarray, speed: float, fbank: Fbank | None, utterance: Utterance, rate: int
) -> tuple[float, int, np.ndarray | None]:
    """Seconds at `speed`, number of frames (of samples without `fbank`), and the features (T,
    F).
    """
    samples = samples if speed == 1.0 else audio.change_speed(samples, speed)
    if fbank is None:
        return len(samples) / rate, len(samples), None
    if not fbank.config.num_frames(len(samples)):
        short = f"{len(samples) / rate * 1000:.1f} ms"
        raise audio.AudioError(
            f"{utterance.audio}: {short} of audio are less than one frame of features"
        )
    dither = fbank.config.dither > 0
    with torch.random.fork_rng(devices=[], enabled=dither):
        if dither:  # the same noise whichever process computes it
            torch.manual_seed(zlib.crc32(f"{speed:g} {utterance.id}".encode()))
        matrix = fbank(torch.from_numpy(samples)).numpy()
    return len(samples) / rate, len(matrix), matrix


def at_speed(utterance: Utterance, speed: float) -> Utterance:
    """The copy of an utterance at another speed, named as Kaldi's perturb_data_dir_speed.sh does:
    `sp0.9-<id>`.

    Its audio is the sox command that would give it. Its duration is left to be measured.
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
