"""A model, data and an objective so small that training takes milliseconds, in the shapes that the
trainer expects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from asrtool.trainer.config import TrainerConfig
from asrtool.trainer.objective import Objective
from asrtool.trainer.optim import OPTIMIZERS, AdamWConfig
from asrtool.trainer.step import Stepper
from asrtool.trainer.trainer import Trainer
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded, Trainable

FEATURES, CLASSES = 6, 5


class ToyLinear(Trainable, nn.Linear):
    """One layer that training takes for a model."""


class ToyModules(Trainable, nn.ModuleDict):
    """Modules by name that training takes for a model."""


class ToyModel(Trainable):
    """Frames -> two layers with dropout -> stream `classes` (B, S, CLASSES)."""

    def __init__(self, dropout: float = 0.2) -> None:
        super().__init__()
        generator_state = torch.random.get_rng_state()
        torch.manual_seed(7)
        self.encoder = nn.Sequential(
            nn.Linear(FEATURES, 8), nn.LayerNorm(8), nn.Tanh(), nn.Dropout(dropout)
        )
        self.head = nn.Linear(8, CLASSES)
        torch.random.set_rng_state(generator_state)

    def forward(self, batch: Batch) -> ModelOutput:
        frames = Padded(self.encoder(batch.inputs.data), batch.inputs.lengths)
        positions = torch.arange(frames.data.shape[1]).expand(len(batch), -1)
        encoded = EncoderOutput(frames=frames, positions=positions)
        return ModelOutput(
            encoder=encoded, heads={"classes": Padded(self.head(frames.data), frames.lengths)}
        )


class ToyLoss:
    """Cross entropy of the first token, summed over the frames; an utterance of one frame cannot be
    rated.
    """

    head = "classes"
    monitors = ()
    views, warmup = 1, 0.0

    def __call__(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        logits, _ = outputs.head("classes")
        targets = batch.targets.data[:, :1].expand(-1, logits.shape[1])
        loss = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
        mask = outputs.head("classes").mask & ~self.skipped(outputs, batch)[:, None]
        return loss.masked_fill(~mask, 0.0).sum(1)

    def skipped(self, outputs: ModelOutput, batch: Batch) -> Tensor:
        return outputs.head("classes").lengths < 2


@dataclass(frozen=True, kw_only=True)
class ToyStep:
    count: int
    batches: list[Batch]
    epoch: int
    index: int
    last: bool


def utterance(number: int) -> tuple[Tensor, Tensor]:
    """Inputs (T, F), whose mean tells the class, and one token."""
    generator = torch.Generator().manual_seed(number)
    token = number % CLASSES
    length = 2 + number % 4
    return torch.randn(length, FEATURES, generator=generator) + token, torch.tensor([token])


def toy_batch(
    numbers: list[int], change: Callable[[int, Tensor], Tensor] = lambda number, inputs: inputs
) -> Batch:
    pairs = [utterance(number) for number in numbers]
    return Batch(
        ids=tuple(f"utt{number}" for number in numbers),
        inputs=Padded.stack(
            [change(number, inputs) for number, (inputs, _) in zip(numbers, pairs, strict=True)]
        ),
        targets=Padded.stack([targets for _, targets in pairs]),
    )


@dataclass(kw_only=True)
class ToySteps:
    """`size` utterances in another order each epoch, `per_step` a step, dealt to the ranks, cut
    into micro-batches.
    """

    size: int = 24
    per_step: int = 8
    micro: int = 8
    rank: int = 0
    world: int = 1
    workers: int | None = 0
    change: Callable[[int, Tensor], Tensor] = lambda number, inputs: inputs
    # called when a step is asked for
    before: Callable[[int, int], None] = lambda epoch, index: None

    def plan(self, epoch: int) -> list[list[int]]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(epoch)).tolist()
        return [
            order[start : start + self.per_step] for start in range(0, self.size, self.per_step)
        ]

    def num_steps(self, epoch: int) -> int:
        return len(self.plan(epoch))

    def steps(self, epoch: int, index: int) -> Iterator[ToyStep]:
        while True:
            plan = self.plan(epoch)
            for number in range(index, len(plan)):
                self.before(epoch, number)
                mine = plan[number][self.rank :: self.world]
                batches = [
                    toy_batch(mine[start : start + self.micro], self.change)
                    for start in range(0, len(mine), self.micro)
                ]
                yield ToyStep(
                    count=len(plan[number]),
                    batches=batches,
                    epoch=epoch,
                    index=number,
                    last=number + 1 == len(plan),
                )
            epoch, index = epoch + 1, 0

    def pace(self, epoch: int, index: int) -> float:
        return 1000.0

    def longest(self) -> Batch:
        return toy_batch([3, 7], self.change)

    def densest(self) -> Iterator[Batch]:
        yield from (toy_batch([number], self.change) for number in range(self.size))


class ToyRates:
    """Share of utterances whose class is wrong."""

    names = ("wer",)

    def __call__(
        self, model: nn.Module, outputs: ModelOutput, batch: Batch
    ) -> Mapping[str, tuple[int, int]]:
        guesses = outputs.head("classes").data.mean(1).argmax(-1)
        return {"wer": (int((guesses != batch.targets.data[:, 0]).sum()), len(batch))}


def toy_objective(loss: object = None, weight: float = 1.0) -> Objective:
    return Objective({"classes": loss or ToyLoss()}, {"classes": weight})


def toy_trainer(
    folder: Path,
    data: ToySteps | None = None,
    optim: Mapping | None = None,
    model: nn.Module | None = None,
    device: torch.device | None = None,
    objective: Objective | None = None,
    **settings,
) -> Trainer:
    """A trainer for `folder`; settings are those of TrainerConfig. optim: of the optimizer `type`,
    by default adamw.
    """
    if "epochs" not in settings and "steps" not in settings:
        settings["epochs"] = 3
    optim = {"lr": 0.05, **(optim or {})}
    kind = optim.pop("type", "adamw")
    data = data or ToySteps()
    return Trainer(
        TrainerConfig(**{"average": 2, **settings}),
        OPTIMIZERS.config_type(kind)(**optim),
        model or ToyModel(),
        objective or toy_objective(),
        data,
        [toy_batch([100, 101, 102]), toy_batch([103, 104]), toy_batch([105])][
            data.rank :: data.world
        ],
        folder,
        rates=ToyRates(),
        device=device or torch.device("cpu"),
    )


def weights_of(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.state_dict().items()}


def toy_stepper(
    model: nn.Module | None = None,
    precision: str = "float32",
    shared: str = "ddp",
    out_of_memory: str = "cut",
    **settings,
) -> Stepper:
    config = AdamWConfig(**{"lr": 0.1, "clip": float("inf"), **settings})
    return Stepper(
        config,
        model or ToyModel(dropout=0.0),
        toy_objective(),
        planned=10,
        precision=precision,
        device=torch.device("cpu"),
        seed=0,
        shared=shared,
        out_of_memory=out_of_memory,
    )


def toy_step(*groups: list[int], change=lambda number, inputs: inputs) -> ToyStep:
    batches = [toy_batch(group, change) for group in groups]
    return ToyStep(count=sum(map(len, groups)), batches=batches, epoch=0, index=0, last=False)


def gradients(stepper: Stepper) -> dict[str, torch.Tensor]:
    """Of the first update: Adam's first moment is (1 - beta1) times the gradient."""
    beta = stepper.config.betas[0]
    return {
        name: stepper.optimizer.state[parameter]["exp_avg"] / (1 - beta)
        for name, parameter in stepper.model.named_parameters()
    }


def difference(first: dict, second: dict) -> float:
    """Largest difference, relative to the largest gradient of each parameter."""
    return max(
        float((first[n] - second[n]).abs().max() / first[n].abs().max().clamp_min(1e-12))
        for n in first
    )
