"""Stage 1's work: audio to features, archives and normalisation statistics, in shards that processes take one by one.

A shard is a fixed number of utterances, so archives and sums do not depend on how many processes there are. Memory
holds the list of utterances, and the audio of one in each process.
"""

from __future__ import annotations

import os
import shlex
import signal
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from asrtool.data import audio, features
from asrtool.data.config import DataConfig
from asrtool.data.fbank import Fbank
from asrtool.types import Utterance

SHARD = 500                                  # utterances, before speed copies
POLL = 0.3                                   # seconds between looks at the workers' progress

_progress = None                             # in a worker: the shared count of utterances done


class ExtractionError(Exception):
    """Stage 1 cannot go on; one sentence says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """Some utterances, and the archive they go to."""

    utterances: Sequence[Utterance]
    archive: Path
    final: Path                              # where the archive will lie in the end
    config: DataConfig
    training: bool


@dataclass
class Extracted:
    """What came of a shard or, added up, of a set."""

    utterances: list[Utterance] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)        # id, why
    rates: Counter[int] = field(default_factory=Counter)                # utterances that had another sampling rate
    stats: features.CmvnStats | None = None                             # of a training set of fbank features

    def __iadd__(self, other: Extracted) -> Extracted:
        self.utterances += other.utterances
        self.skipped += other.skipped
        self.rates += other.rates
        if self.stats is None:
            self.stats = other.stats
        elif other.stats is not None:
            self.stats += other.stats
        return self


def extract(
    utterances: Sequence[Utterance], config: DataConfig, folder: Path, *, final: Path, training: bool, nj: int
) -> Extracted:
    """Write feats.*.ark into `folder` (references say `final`); the utterances with features and measured lengths.

    For a training set the copies at `augment.speeds` and the statistics for `Cmvn` are made too. Where features are not
    stored (`features: online`, or waveforms), only lengths and statistics are.
    """
    shards = [
        Shard(
            utterances=utterances[first:first + SHARD], archive=folder / f"feats.{number}.ark",
            final=final / f"feats.{number}.ark", config=config, training=training,
        )
        for number, first in enumerate(range(0, len(utterances), SHARD), 1)
    ]
    total = Extracted()
    with tqdm(total=len(utterances), unit="utt", desc=final.name, disable=None) as bar:
        for result in process(shards, min(nj, len(shards)), bar):
            total += result
    return total


# -- processes -------------------------------------------------------------

def process(shards: Sequence[Shard], nj: int, bar: tqdm) -> Iterator[Extracted]:
    """The results of all shards in their order."""
    threads = torch.get_num_threads()
    if nj <= 1:
        torch.set_num_threads(1)             # as in the workers: sums in another order would differ in the last bit
        try:
            yield from (extract_shard(shard, bar.update) for shard in shards)
        finally:
            torch.set_num_threads(threads)
        return
    context = get_context("spawn")           # a fork would inherit the locks of torch's threads
    count = context.Value("Q", 0)
    with ProcessPoolExecutor(nj, mp_context=context, initializer=start_worker, initargs=(count,)) as pool:
        waiting = [pool.submit(extract_shard, shard) for shard in shards]
        try:
            for future in waiting:
                while wait([future], POLL, FIRST_COMPLETED).not_done:
                    bar.update(count.value - bar.n)
                yield future.result()
        except BrokenProcessPool:
            raise ExtractionError("a worker process was killed, for lack of memory perhaps; lower --nj") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    bar.update(count.value - bar.n)


def start_worker(count: object) -> None:
    """Set up a worker: one thread, dead when its parent is (even by kill -9) or at Ctrl-C."""
    global _progress
    _progress = count
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

def extract_shard(shard: Shard, advance: Callable[[int], object] = count_in_worker) -> Extracted:
    """Read, compute and write; an utterance that cannot be used is left out and named in `skipped`."""
    config, result = shard.config, Extracted()
    fbank = Fbank(config.fbank) if config.input == "fbank" else None
    if fbank and shard.training:
        result.stats = features.CmvnStats(config.fbank.num_mel_bins)
    speeds = features.copies(config) if shard.training else (1.0,)
    stored = fbank and config.features == "stored"
    with features.ArkWriter(shard.archive, shard.final) if stored else nullcontext() as writer:
        for utterance in shard.utterances:
            try:
                samples, rate = read_samples(utterance, config.fbank.rate)
                versions = [(speed, *measure(samples, speed, fbank, utterance, config.fbank.rate)) for speed in speeds]
            except audio.AudioError as error:
                result.skipped.append((utterance.id, str(error)))
                versions = []
            for speed, seconds, num_frames, matrix in versions:
                row = replace(at_speed(utterance, speed), duration=seconds, num_frames=num_frames)
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
    duration = None if utterance.recording is None else utterance.duration
    samples, found = audio.load(utterance.audio, utterance.start, duration)
    return audio.resample(samples, found, rate), found


def measure(
    samples: np.ndarray, speed: float, fbank: Fbank | None, utterance: Utterance, rate: int
) -> tuple[float, int, np.ndarray | None]:
    """Seconds at `speed`, number of frames (of samples without `fbank`), and the features (T, F)."""
    samples = samples if speed == 1.0 else audio.change_speed(samples, speed)
    if fbank is None:
        return len(samples) / rate, len(samples), None
    if not fbank.config.num_frames(len(samples)):
        short = f"{len(samples) / rate * 1000:.1f} ms"
        raise audio.AudioError(f"{utterance.audio}: {short} of audio are less than one frame of features")
    dither = fbank.config.dither > 0
    with torch.random.fork_rng(devices=[], enabled=dither):
        if dither:                           # the same noise whichever process computes it
            torch.manual_seed(zlib.crc32(f"{speed:g} {utterance.id}".encode()))
        matrix = fbank(torch.from_numpy(samples)).numpy()
    return len(samples) / rate, len(matrix), matrix


def at_speed(utterance: Utterance, speed: float) -> Utterance:
    """The copy of an utterance at another speed, named as Kaldi's perturb_data_dir_speed.sh does: `sp0.9-<id>`.

    Its audio is the sox command that would give it. Its duration is left to be measured.
    """
    if speed == 1.0:
        return utterance
    prefix, source = f"sp{speed:g}-", utterance.audio
    pipe = audio.is_pipe(source)
    command = f"{source} sox -t wav -" if pipe else f"sox {shlex.quote(source)}"
    return replace(
        utterance, id=prefix + utterance.id, speaker=prefix + utterance.speaker, start=utterance.start / speed,
        recording=utterance.recording and prefix + utterance.recording, audio=f"{command} -t wav - speed {speed:g} |",
    )
