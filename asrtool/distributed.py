"""The process group that torchrun describes, and the few collectives that asrtool needs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from asrtool.system import peers

# Timeout of collectives. Long, because one rank may be writing a large checkpoint; the death of a
# rank is detected otherwise, within seconds.
PATIENCE = timedelta(hours=1)


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def ranks_here() -> int:
    """Processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_main() -> bool:
    return rank() == 0


def device() -> torch.device:
    """This rank's GPU if CUDA_VISIBLE_DEVICES leaves any, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group of torchrun (nccl on GPUs, gloo on CPUs); no-op in a single process.

    Within it, the death of a rank ends all others within seconds, with a message that names the
    rank (asrtool/system/peers.py).
    """
    if world_size() == 1:
        yield
        return
    # Every rank reads the same environment, so all of them take the same branch.
    chosen = device()
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # init_process_group blocks in C++ until all ranks have joined, and Python's handler of Ctrl-C
    # would not run: let the signal kill the process. Only the main thread may set handlers.
    ours = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL) if ours else None
    hook = sys.excepthook
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=PATIENCE)
    sys.excepthook = hook  # torch's own would print the rank before each line
    if ours:
        signal.signal(signal.SIGINT, handler)
    try:
        with peers.watched(rank(), world_size(), broadcast_object):
            yield
    except BaseException:
        # nccl would wait here for ranks that are waiting for this one; gloo does not
        if chosen.type == "cpu":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def all_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over ranks, in place; the tensor is on `device()`."""
    if dist.is_initialized():
        dist.all_reduce(values)
    return values


def largest(value: int) -> int:
    """The maximum over ranks."""
    if not dist.is_initialized():
        return value
    box = torch.tensor(value, dtype=torch.int64, device=device())
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def barrier() -> None:
    if dist.is_initialized():
        dist.barrier()


def broadcast_object(value: object) -> object:
    """Rank 0's small Python object, on every rank."""
    if not dist.is_initialized():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=device() if device().type == "cuda" else None)
    return box[0]


def gather_objects(value: object) -> list:
    """Every rank's small Python object, in the order of the ranks, on every rank."""
    if not dist.is_initialized():
        return [value]
    box: list = [None] * dist.get_world_size()
    dist.all_gather_object(box, value)
    return box
