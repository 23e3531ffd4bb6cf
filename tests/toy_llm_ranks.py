"""What a rank does with its share of a speech LLM; a module of its own, so that it can be
spawned.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from asrtool import distributed
from asrtool.losses import LOSSES
from asrtool.trainer import checkpoint, parallel
from asrtool.trainer.objective import Objective
from asrtool.trainer.optim import AdamWConfig
from asrtool.trainer.step import Stepper
from tests import toy_llm
from tests.toy_ranks import join
from tests.toy_training import ToyStep


def steps(
    llm: Path, precision: str, shared: str, shares: list[list[int]]
) -> tuple[Stepper, list[float]]:
    """Two updates on the utterances of each micro-batch in `shares`; the stepper and the norms of
    the gradients.
    """
    parts = toy_llm.config(llm)
    parts = dataclasses.replace(parts, llm=dataclasses.replace(parts.llm, precision=precision))
    model = toy_llm.build(parts, ("llm", "speech")).train()
    losses = {
        "lm": LOSSES.config_type("cross_entropy")(weight=1.0, input="llm", smoothing=0.0),
        "matching": LOSSES.config_type("matching")(weight=0.1),
    }
    terms = {name: LOSSES.build(loss, eos=model.eos) for name, loss in losses.items()}
    stepper = Stepper(
        AdamWConfig(lr=0.01, clip=1.0),
        model,
        Objective(terms, {"lm": 1.0, "matching": 0.1}),
        planned=2,
        precision="float32",
        device=torch.device("cpu"),
        seed=0,
        shared=shared,
    )
    batches = [toy_llm.batch(False, rows=rows) for rows in shares]
    step = ToyStep(count=4, batches=batches, epoch=0, index=0, last=False)
    return stepper, [stepper.update(step, number).norm for number in (1, 2)]


def work(rank: int, world: int, port: int, folder: Path, llm: Path, precision: str) -> None:
    join(rank, world, port)
    with distributed.process_group():
        stepper, norms = steps(llm, precision, "fsdp", [[[0, 1]], [[2], [3]]][rank])
        found = parallel.gather(checkpoint.model_tensors(stepper.model), keep=True)
        local = sum(value.to_local().numel() for value in stepper.model.parameters())
    torch.save({"norms": norms, "tensors": found, "local": local}, folder / f"{rank}.pt")
