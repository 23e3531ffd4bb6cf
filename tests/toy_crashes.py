"""A training that dies, or finds the disk full, at its n-th change of the file system: see
unit/trainer/test_crashes.py.

Every run is a forked process, so that a death is one: nothing of it runs afterwards, no `finally`
and no `except`.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from asrtool.trainer import averaging, checkpoint
from tests.toy_training import ToySteps, toy_trainer

CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir"}
DEATH = 9


def train(folder: Path) -> int:
    """Four steps, with a checkpoint at each, two validations and an average."""
    data = ToySteps(size=8, per_step=4, micro=4)
    return toy_trainer(folder, data, epochs=2, save_every_seconds=0.0, tensorboard=False).run()


class Faults:
    """Counts what changes the file system; `fault` is called from the `first`-th time on."""

    def __init__(self, first: int, fault: Callable[[Path | None], None]) -> None:
        self.count, self._first, self._fault = 0, first, fault
        sys.addaudithook(self._audit)
        os.fsync = self._synced
        for module in (checkpoint, averaging):
            module.save_file = self._saving(module.save_file)

    def happens(self, half: Path | None = None) -> None:
        self.count += 1
        if self.count >= self._first:
            self._fault(half)

    def _audit(self, event: str, args: tuple) -> None:
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if writes or event in CHANGES:
            self.happens()

    def _synced(self, handle: int) -> None:
        self.happens()

    def _saving(self, save: Callable) -> Callable:
        def saved(tensors: dict, path: Path, *args: object, **named: object) -> None:
            self.happens(Path(path))
            save(tensors, path, *args, **named)

        return saved


def die(half: Path | None) -> None:
    if half is not None:
        half.write_bytes(b"half a file")
    os._exit(DEATH)


def full(half: Path | None) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def child(work: Callable[[], int]) -> int:
    """The exit status of a process that does this."""
    number = os.fork()
    if number == 0:
        torch.set_num_threads(1)
        status = 1
        try:
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def crashing(folder: Path, first: int, fault: Callable[[Path | None], None]) -> int:
    """Train with a fault from change number `first` on; every checkpoint that was saved until then
    is noted.
    """
    settle = checkpoint.prune
    done = folder.with_name("done")

    def noted(where: Path, keep: object, newest: Path) -> None:
        os.write(handle, f"{newest.name}\n".encode())
        settle(where, keep, newest)

    handle = os.open(done, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    checkpoint.prune = noted
    faults = Faults(first, fault)
    try:
        train(folder)
    except Exception as error:
        os.write(2, f"{error}\n".encode())
        return 1
    os.write(handle, f"changes {faults.count}\n".encode())
    return 0


def kept(folder: Path) -> str | None:
    """The checkpoint that training goes on from."""
    checkpoint.bring_back(folder)
    found = checkpoint.latest(folder)
    return found and found.name


def result(folder: Path) -> dict[str, bytes]:
    """What must be the same however often the training was stopped; anything left over is a
    difference too.
    """
    last = checkpoint.latest(folder)
    files = [last / checkpoint.MODEL, last / checkpoint.OPTIMIZER]
    files += [path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")]
    left = [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".old", ".lock"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files} | dict.fromkeys(
        map(str, left), b""
    )
