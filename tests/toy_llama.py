"""A model with the parts of a Llama and adapters, of a few hundred parameters, and what a rank does
with its shard.
"""

from __future__ import annotations

import os
import signal
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asrtool import distributed
from asrtool.trainer import checkpoint, parallel
from asrtool.trainer.capacity.memory import recompute
from asrtool.trainer.optim import GroupConfig
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded, Trainable
from tests.toy_ranks import join, one_step
from tests.toy_training import (
    CLASSES,
    FEATURES,
    ToyStep,
    ToySteps,
    toy_batch,
    toy_stepper,
    toy_trainer,
)

WIDTH, HEADS, LAYERS = 8, 2, 3
# the base is frozen for ever, but for its norms; the adapters are trained from step 3 on
GROUPS = {
    "layers.*.base.*": GroupConfig(freeze=True),
    "layers.*_proj.weight": GroupConfig(freeze=True),
    "layers.*_lora_*": GroupConfig(freeze_until=2, lr_scale=0.5),
}
SHARES = [[[0, 1, 2], [3]], [[4, 5, 6, 7]]]  # utterances by rank and micro-batch
LOPSIDED = [[[0, 1], [2, 3], [4, 5, 6, 7]], []]


class Layer(nn.Module):
    """RMS norm, causal attention with low-rank adapters on query and value, RMS norm, gated
    feed-forward.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(2))
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH, bias=False))
        self.q_lora_a, self.v_lora_a = (nn.Linear(WIDTH, 2, bias=False) for _ in range(2))
        self.q_lora_b, self.v_lora_b = (nn.Linear(2, WIDTH, bias=False) for _ in range(2))
        self.base = nn.ModuleDict(
            {name: nn.Linear(WIDTH, 12, bias=False) for name in ("gate", "up")}
        )
        self.base["down"] = nn.Linear(12, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        query = self.q_proj(y) + self.q_lora_b(self.q_lora_a(y))
        value = self.v_proj(y) + self.v_lora_b(self.v_lora_a(y))
        heads = (
            part.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in (query, self.k_proj(y), value)
        )
        x = x + self.o_proj(
            F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(-2)
        )
        y = self.norms[1](x)
        return x + self.base["down"](F.silu(self.base["gate"](y)) * self.base["up"](y))


class ToyLlama(Trainable):
    """Frames -> layers -> stream `classes`, through a table that is tied to the head, as Llamas'
    are.
    """

    def __init__(self) -> None:
        super().__init__()
        state = torch.random.get_rng_state()
        torch.manual_seed(3)
        self.adapter = nn.Linear(FEATURES, WIDTH)
        self.embedding = nn.Embedding(CLASSES, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("scale", torch.tensor(2.0))
        torch.random.set_rng_state(state)

    def forward(self, batch: Batch) -> ModelOutput:
        x = self.adapter(batch.inputs.data) + self.embedding.weight[0]
        for layer in self.layers:
            x = layer(x)
        frames = Padded(self.norm(x), batch.inputs.lengths)
        positions = torch.arange(x.shape[1]).expand(len(batch), -1)
        logits = self.scale * self.head(frames.data)
        encoded = EncoderOutput(frames=frames, positions=positions)
        return ModelOutput(encoder=encoded, heads={"classes": Padded(logits, frames.lengths)})


def run(folder: Path, rank: int = 0, world: int = 1, **options):
    """Two phases: adapters on a frozen base, then all that follows the average of the first."""
    data = ToySteps(rank=rank, world=world, size=25, micro=2, **options)
    weights = None
    for name, groups in (("adapters", GROUPS), ("all", {"embedding.*": GroupConfig(freeze=True)})):
        model = ToyLlama()
        if weights is not None:
            checkpoint.load_model(model, weights)
        optim = {"lr": 0.01, "groups": groups}
        trainer = toy_trainer(folder / name, data, optim, model, epochs=2, ema=0.9, parallel="fsdp")
        if trainer.run():
            return
        weights = folder / name / "average-2.safetensors"


def work(rank: int, world: int, port: int, folder: Path) -> None:
    join(rank, world, port)
    # of a view: its gradients may be wrong
    warnings.filterwarnings("error", "FSDP2-wrapped module")
    found = {}
    with distributed.process_group():
        for name, shares in {"uneven": SHARES, "lopsided": LOPSIDED}.items():
            stepper = toy_stepper(ToyLlama(), shared="fsdp", groups=GROUPS, lr=0.01, clip=0.5)
            stepper.dry_run(toy_batch([3]))
            results = [stepper.update(one_step(shares, rank), step) for step in range(1, 5)]
            found[name] = parallel.gather(stepper.model.state_dict(), keep=True)
            found[f"{name} norms"] = [result.norm for result in results]
        found["local"] = sum(value.to_local().numel() for value in stepper.model.parameters())
        bad = toy_batch(
            [rank], lambda number, inputs: inputs * float("nan") if number == 1 else inputs
        )
        step = ToyStep(count=2, batches=[bad] * (rank + 1), epoch=0, index=0, last=False)
        found["bad"] = stepper.update(step, 5).bad
        found["after"] = parallel.gather(stepper.model.state_dict(), keep=True)

        run(folder / "undisturbed", rank, world)
        run(folder / "resumed", rank, world, before=lambda epoch, index: stop(epoch, index, rank))
        run(folder / "resumed", rank, world)
    torch.save(found, folder / f"{rank}.pt")


def work_in_groups(rank: int, world: int, port: int, folder: Path) -> None:
    """Two machines of two ranks each: a few steps, and a run that goes on after a stop."""
    join(rank, world, port)
    os.environ["LOCAL_WORLD_SIZE"] = "2"
    shares = [share for share in SHARES for _ in range(2)]
    found = {}
    with distributed.process_group():
        model = ToyLlama()
        recompute(model)  # which changes nothing, on shards neither
        stepper = toy_stepper(model, shared="hsdp", groups=GROUPS, lr=0.01, clip=0.5)
        results = [stepper.update(one_step(shares, rank), step) for step in range(1, 5)]
        found["weights"] = parallel.gather(stepper.model.state_dict(), keep=True)
        found["norms"] = [result.norm for result in results]
        found["local"] = sum(value.to_local().numel() for value in stepper.model.parameters())
        for name, steps in (("undisturbed", [6]), ("resumed", [2, 6])):
            for last in steps:
                data = ToySteps(rank=rank, world=world, size=24, micro=2)
                settings = {"steps": last, "validate_every": 2, "ema": 0.9, "parallel": "hsdp"}
                toy_trainer(folder / name, data, {"lr": 0.01}, ToyLlama(), **settings).run()
                if last < 6 and rank == 0:
                    (folder / name / "finished.json").unlink()
                distributed.barrier()
    torch.save(found, folder / f"{rank}.pt")


def stop(epoch: int, index: int, rank: int) -> None:
    if (epoch, index, rank) == (1, 1, 1):
        os.kill(os.getpid(), signal.SIGTERM)
