"""Runs the jobs of a plan: one new process per job, several at a time.

espeak-ng keeps hidden state from one utterance to the next, so each session is synthesised from its
first sentence in its own process. Random choices depend on the seed, the set, the speaker and the
index of the utterance. So the files are the same for any number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Protocol

import soundfile

from mini_corpus.errors import CorpusError

Times = list[tuple[float, float]]


class Job(Protocol):
    """The work of one process."""

    def description(self) -> str:
        """The job and its speakers, for messages."""

    def speak(self) -> Times:
        """Write the audio; returns start and end of each sentence in its file, in seconds."""


def render(jobs: Sequence[Job], nj: int, progress: Callable[[int, int], None]) -> list[Times]:
    """Write the audio of all jobs with `nj` processes; returns the times of each job's sentences.

    progress: called with the numbers of finished jobs and of all jobs.
    Raises CorpusError, after stopping the other processes, if a job fails.
    """
    # a fork server starts a process in milliseconds, without a loaded espeak-ng
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["numpy", "soundfile"])
    times: list[Times] = [[] for _ in jobs]
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
                raise CorpusError("The recipe that started this command has ended.")
            for receiver in wait(list(running), timeout=1):
                index, process = running.pop(receiver)
                times[index] = _result(receiver, jobs[index])
                process.join()
                progress(len(jobs) - len(waiting) - len(running), len(jobs))
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    return times


def _result(receiver: Connection, job: Job) -> Times:
    context = f"Synthesising {job.description()}"
    try:
        result = receiver.recv()
    except EOFError:
        raise CorpusError(f"{context}: the process died; is there enough memory?") from None
    if isinstance(result, str):
        raise CorpusError(f"{context}: {result}")
    return result


def _work(job: Job, sender: Connection) -> None:
    """The main function of a process: sends the times, or an error message."""
    # Ctrl-C reaches all processes of the terminal; the parent stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send(job.speak())
    except (CorpusError, OSError, soundfile.SoundFileError) as error:
        sender.send(f"{error}")


def _end_with_parent() -> None:
    """End this process with its parent, which cannot stop it when it is killed itself."""
    multiprocessing.parent_process().join()
    os._exit(1)
