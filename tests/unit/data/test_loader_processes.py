"""What becomes of loader processes when something ends: training, its process, one of them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from asrtool.data import loader, tokenizers
from asrtool.data.config import BatchConfig, DataConfig
from asrtool.errors import UserError
from asrtool.types import Utterance

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfd and /proc are Linux's")

STEPS = """
import os, sys
from pathlib import Path
from asrtool.data import loader, tokenizers
from asrtool.data.config import BatchConfig, DataConfig
from asrtool.types import Utterance

folder = Path(sys.argv[1])
config = DataConfig(batch=BatchConfig(seconds=10), workers=2, input="waveform")
audio = str(folder / "a.wav")
utterances = [Utterance(id=str(i), audio=audio, duration=1.0, speaker="s") for i in range(50)]
tokenizer = tokenizers.train(["a"], "char", 0, folder)
dataset = loader.Dataset(utterances, tokenizer, config, training=True)
steps = loader.StepLoader(dataset).steps()
next(steps)
children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
print(*children, flush=True)
sys.stdin.read()
"""

# What a loader process does when the trainer goes in the middle of taking a tensor from it.
HANGS_UP = """
import multiprocessing, sys, time
from multiprocessing.connection import Client
from multiprocessing.resource_sharer import DupFd
from asrtool.data.loader import _set_up_worker

_set_up_worker(0)
address, key = DupFd(0)._id
with Client(address, authkey=multiprocessing.current_process().authkey) as connection:
    if sys.argv[1] == "wrong":
        connection.send((key + 1, 0))
        time.sleep(0.2)
time.sleep(0.2)
"""


@pytest.fixture
def trainer(tmp_path: Path) -> Iterable[tuple[subprocess.Popen, list[int]]]:
    """A process that trains with two loader processes, in a process group of its own; handles of
    the two.
    """
    soundfile.write(tmp_path / "a.wav", np.full(16000, 0.1), 16000)
    command = [sys.executable, "-c", STEPS, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, text=True, start_new_session=True
    ) as process:
        handles = [os.pidfd_open(int(pid)) for pid in process.stdout.readline().split()]
        yield process, handles
        process.kill()
    for handle in handles:
        os.close(handle)


def ended(handles: list[int], seconds: float) -> bool:
    """Whether all these processes end within so many seconds."""
    return all(select.select([handle], [], [], seconds)[0] for handle in handles)


def test_the_end_of_training_ends_its_loader_processes(
    trainer: tuple[subprocess.Popen, list[int]],
) -> None:
    process, handles = trainer
    assert len(handles) == 2
    process.communicate("")
    assert process.returncode == 0
    assert ended(handles, 1)


def test_signals_to_the_group_leave_loader_processes_alone_but_they_do_not_outlive_the_trainer(
    trainer: tuple[subprocess.Popen, list[int]],
) -> None:
    process, handles = trainer
    process.send_signal(signal.SIGSTOP)
    # a signal sent before it stops would still be acted on
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(process.pid, number)
    assert not ended(handles[:1], 0.2)
    process.kill()
    assert ended(handles, 15)  # they look for their parent every 5 seconds


def test_a_dead_loader_process_is_one_sentence(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.full(16000, 0.1), 16000)
    config = DataConfig(batch=BatchConfig(seconds=10), workers=1, input="waveform")
    utterances = [
        Utterance(id=str(i), audio=str(tmp_path / "a.wav"), duration=1.0, speaker="s")
        for i in range(50)
    ]
    tokenizer = tokenizers.train(["a"], "char", 0, tmp_path)
    steps = loader.StepLoader(loader.Dataset(utterances, tokenizer, config, training=True)).steps()
    before = children()
    next(steps)
    (worker,) = children() - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(
        UserError, match="a loader process died with exit code -9; is there enough memory"
    ):
        for _ in range(100):
            next(steps)


def children() -> set[int]:
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def test_a_trainer_that_goes_while_it_takes_a_batch_is_no_traceback() -> None:
    def said(way: str) -> str:
        return subprocess.run(
            [sys.executable, "-c", HANGS_UP, way], capture_output=True, text=True, check=True
        ).stderr

    assert said("gone") == ""
    assert "KeyError" in said("wrong")  # any other error of that thread is still told
