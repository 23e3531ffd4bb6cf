"""What one of several processes does in tests of ranks; a module of its own, so that it can be
spawned.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from asrtool import distributed
from asrtool.trainer.optim import GroupConfig
from tests.toy_training import (
    ToyModel,
    ToyStep,
    ToySteps,
    gradients,
    toy_batch,
    toy_stepper,
    toy_trainer,
)

WORLD = 2


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def start(work: Callable, world: int, *arguments: object) -> list[BaseProcess]:
    """Processes that run `work(rank, world, port, *arguments)`, forked from one that has imported
    torch already.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.toy_llama", "tests.toy_interruptions"])
    port = free_port()
    ranks = [
        context.Process(target=work, args=(rank, world, port, *arguments)) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    return ranks


def spawn(work: Callable, world: int, *arguments: object) -> None:
    """The same, to the end, which must be good."""
    ranks = start(work, world, *arguments)
    for process in ranks:
        process.join(300)
    assert [process.exitcode for process in ranks] == [0] * world


def join(rank: int, world: int, port: int) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)


def one_step(shares: list[list[list[int]]], rank: int) -> ToyStep:
    count = sum(len(group) for share in shares for group in share)
    return ToyStep(
        count=count, batches=[toy_batch(g) for g in shares[rank]], epoch=0, index=0, last=False
    )


def work(rank: int, world: int, port: int, folder: Path) -> None:
    join(rank, world, port)
    with distributed.process_group():
        found = {}
        for name, shares in {
            "uneven": [[[0, 1, 2], [3]], [[4, 5, 6, 7]]],
            "one rank empty": [[[0, 1], [2, 3, 4, 5, 6, 7]], []],
        }.items():
            stepper = toy_stepper()
            stepper.dry_run(toy_batch([3]))
            stepper.update(one_step(shares, rank), 1)
            found[name] = gradients(stepper)

        thawing = toy_stepper(groups={"encoder.0.*": GroupConfig(freeze_until=1)})
        for step in (1, 2, 3):
            thawing.update(one_step([[[0, 1]], [[2, 3]]], rank), step)
        found["thawed"] = {"step": thawing.optimizer.state[thawing.model.encoder[0].weight]["step"]}

        bad = (
            toy_stepper()
            .update(
                ToyStep(
                    count=4,
                    batches=[toy_batch([rank], lambda n, x: x * float("nan") if n == 1 else x)],
                    epoch=0,
                    index=0,
                    last=False,
                ),
                1,
            )
            .bad
        )
        trainer = toy_trainer(folder / "run", ToySteps(rank=rank, world=WORLD, size=25, micro=2))
        ended = trainer.run()
    torch.save(
        {**found, "bad": bad, "ended": ended, "weights": trainer.model.state_dict()},
        folder / f"{rank}.pt",
    )


def one_gradient(
    rank: int, world: int, port: int, folder: Path, shares: list[list[list[int]]]
) -> None:
    join(rank, world, port)
    with distributed.process_group():
        stepper = toy_stepper()
        stepper.update(one_step(shares, rank), 1)
    torch.save(gradients(stepper), folder / f"{rank}.pt")


def go_on(rank: int, world: int, port: int, folder: Path) -> None:
    join(rank, world, port)
    with distributed.process_group():
        toy_trainer(folder, ToySteps(rank=rank, world=world), model=ToyModel(dropout=0.0)).run()
