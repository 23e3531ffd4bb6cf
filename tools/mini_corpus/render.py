"""Does the jobs of a plan: one fresh process per job, several at a time.

espeak-ng carries hidden state from one utterance to the next, so a session is always spoken from
its first sentence on in a process of its own. Everything random is drawn from the seed, the set,
the speaker and the utterance's index. Both together make the files the same whatever the number of
processes.
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
    """What one process does."""

    def description(self) -> str:
        """What is spoken by whom, for messages."""

    def speak(self) -> Times:
        """Write the audio; where each sentence begins and ends in its file, in seconds."""


def render(jobs: Sequence[Job], nj: int, progress: Callable[[int, int], None]) -> list[Times]:
    """Write the audio of all jobs with `nj` processes; when the sentences of each job are spoken.

    progress: is called with the number of finished jobs and of all jobs.
    Raises CorpusError, after stopping the other processes, when a job fails.
    """
    # A fork server starts a process in milliseconds, from a state in which espeak-ng was never
    # loaded.
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
                raise CorpusError("The recipe that wanted the corpus has ended.")
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
    where = f"Speaking {job.description()}"
    try:
        result = receiver.recv()
    except EOFError:
        raise CorpusError(f"{where}: the process died; is there enough memory?") from None
    if isinstance(result, str):
        raise CorpusError(f"{where}: {result}")
    return result


def _work(job: Job, sender: Connection) -> None:
    """The body of one process: sends what came of it, or a message."""
    # Ctrl-C reaches every process of the terminal; the parent is the one that stops the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sender.send(job.speak())
    except (CorpusError, OSError, soundfile.SoundFileError) as error:
        sender.send(f"{error}")


def _end_with_parent() -> None:
    """A parent that was killed stops no one."""
    multiprocessing.parent_process().join()
    os._exit(1)
