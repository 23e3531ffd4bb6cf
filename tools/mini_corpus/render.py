"""Speaks a plan: one fresh process per session, several at a time.

espeak-ng carries hidden state from one utterance to the next, so a session is always spoken from its first sentence on
in a process of its own. Everything random is drawn from the seed, the set, the speaker and the utterance's index. Both
together make the files the same whatever the number of processes.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import soundfile

from mini_corpus import acoustics
from mini_corpus.errors import CorpusError
from mini_corpus.espeak import Espeak
from mini_corpus.plan import Session


@dataclass(frozen=True)
class Job:
    """A session and the audio files (one per sentence) that it becomes."""

    session: Session
    first_index: int
    paths: tuple[Path, ...]
    seed: int


def render(jobs: Sequence[Job], nj: int, progress: Callable[[int, int], None]) -> list[float]:
    """Write the audio of all jobs with `nj` processes; the seconds of speech in each job.

    progress: is called with the number of finished jobs and of all jobs.
    Raises CorpusError, after stopping the other processes, when a job fails.
    """
    # A fork server starts a process in milliseconds, from a state in which espeak-ng was never loaded.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["numpy", "soundfile"])
    seconds = [0.0] * len(jobs)
    waiting, parent = list(range(len(jobs)))[::-1], os.getppid()
    running: dict[Connection, tuple[int, multiprocessing.process.BaseProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < nj:
                index = waiting.pop()
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(jobs[index], sender), daemon=True)
                process.start()
                sender.close()
                running[receiver] = (index, process)
            if os.getppid() != parent and "ASRTOOL_PARENT" in os.environ:
                raise CorpusError("The recipe that wanted the corpus has ended.")
            for receiver in wait(list(running), timeout=1):
                index, process = running.pop(receiver)
                seconds[index] = _result(receiver, jobs[index].session)
                process.join()
                progress(len(jobs) - len(waiting) - len(running), len(jobs))
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    return seconds


def _result(receiver: Connection, session: Session) -> float:
    where = f"Speaking session {session.number} ({session.speaker.description()})"
    try:
        result = receiver.recv()
    except EOFError:
        raise CorpusError(f"{where}: the process died; is there enough memory?") from None
    if isinstance(result, str):
        raise CorpusError(f"{where}: {result}")
    return result


def _work(job: Job, sender: Connection) -> None:
    """The body of one process: sends the seconds written, or a message."""
    # Ctrl-C reaches every process of the terminal; the parent is the one that stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send(_speak(job))
    except (CorpusError, OSError, soundfile.SoundFileError) as error:
        sender.send(f"{error}")


def _end_with_parent() -> None:
    """A parent that was killed stops no one."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _speak(job: Job) -> float:
    speaker = job.session.speaker
    espeak = Espeak(seed=1 + (job.seed + job.session.number) % (2**31 - 1))
    espeak.set_voice(speaker.accent, speaker.voice)
    split = zlib.crc32(job.session.split.encode())
    seconds = 0.0
    for offset, (text, path) in enumerate(zip(job.session.sentences, job.paths, strict=True)):
        rng = np.random.default_rng([job.seed, split, speaker.number, job.first_index + offset])
        dry = espeak.speak(
            text.lower(),
            words_per_minute=round(speaker.words_per_minute * rng.uniform(0.95, 1.05)),
            pitch=speaker.pitch + int(rng.integers(-3, 4)),
            pitch_range=speaker.pitch_range,
        )
        dry = acoustics.resample(acoustics.trim(dry), block=speaker.tract, tilt_db=speaker.tilt_db)
        recording = acoustics.record(dry, job.session.conditions, speaker.level_db + rng.uniform(-2, 2), rng)
        _write_flac(recording, path)
        seconds += recording.size / acoustics.SAMPLE_RATE_HZ
    return seconds


def _write_flac(recording: np.ndarray, path: Path) -> None:
    # Encoded in memory: on a full disk Python says so, libsndfile may not.
    encoded = io.BytesIO()
    soundfile.write(encoded, recording, acoustics.SAMPLE_RATE_HZ, format="FLAC", subtype="PCM_16")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded.getvalue())
