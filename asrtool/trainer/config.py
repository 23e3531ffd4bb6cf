"""The `trainer:` part of a training config, the state of a run, and the trainer's view of data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from asrtool.registry import OMIT, bounded

if TYPE_CHECKING:  # reading a config needs no training code
    from asrtool.trainer.step import StepBatches
    from asrtool.types import Batch


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """Length and precision of training, and what is kept. Give either `epochs` or `steps`."""

    epochs: int | None = None
    steps: int | None = None
    # auto: bf16 if the device supports it in hardware
    precision: Literal["auto", "float32", "bf16", "fp16"] = "float32"
    # lower is better: valid/wer, valid/cer, valid/loss or valid/<loss term>
    best: str = "valid/loss"
    average: int = 10  # checkpoints averaged at the end (one is saved at each validation)
    average_by: Literal["best", "last"] = "best"
    validate_every: int | None = None  # steps; null: at the end of each epoch
    early_stop: int | None = None  # stop after so many validations without a better value of `best`
    # seconds between checkpoints, in addition to those of validations
    save_every_seconds: float = bounded(600.0, least=0)
    log_every: int = 20  # steps per record in log.jsonl
    nonfinite_limit: int = 10  # consecutive non-finite steps that end the run
    # decay of a moving average of the weights, which validation and decoding use; null: none
    ema: float | None = None
    compile: bool = False  # torch.compile each layer of the model
    # products of float32 in TF32 on GPUs that have it (NVIDIA's since 2020)
    tf32: bool = field(default=True, metadata=OMIT)
    # ddp: each rank holds the whole model; fsdp: a share; hsdp: a share of the copy of its machine
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    # compute the inside of the encoder's layers again in the backward pass, instead of keeping it
    activation_checkpointing: bool = field(default=False, metadata=OMIT)
    # cut: a micro-batch that does not fit into memory is repeated in two parts, and gradients are
    # summed over ranks after the backward pass; stop: the run ends, and they are summed during it
    out_of_memory: Literal["cut", "stop"] = field(default="cut", metadata=OMIT)
    # name of a loss: log the cosine between its gradient and that of the other losses
    gradient_cosine: str | None = None
    tensorboard: bool = True  # also write TensorBoard event files, where it is installed
    # project of Weights & Biases that is sent the same; null: none
    wandb: str | None = field(default=None, metadata=OMIT)

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps, not both")
        counts = {
            name: getattr(self, name)
            for name in (
                "epochs",
                "steps",
                "average",
                "validate_every",
                "early_stop",
                "log_every",
                "nonfinite_limit",
            )
        }
        wrong = [name for name, value in counts.items() if value is not None and value < 1]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} must be at least 1")
        if not 0 <= self.save_every_seconds < math.inf:
            raise ValueError(f"save_every_seconds is {self.save_every_seconds}: give 0 or more")
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError("ema must be between 0 and 1")
        if self.parallel != "ddp":
            self._check_shards()

    def _check_shards(self) -> None:
        if self.gradient_cosine is not None:
            raise ValueError("gradient_cosine needs whole gradients; use parallel: ddp")
        if self.precision == "fp16":
            raise ValueError(
                f"parallel: {self.parallel} has no gradient scaler for fp16; use precision: auto, "
                "bf16 or float32"
            )
        if self.compile:
            raise ValueError(
                f"compile does not work with parallel: {self.parallel}; use parallel: ddp"
            )


@dataclass(frozen=True, kw_only=True)
class TrainState:
    """The state of a run besides weights and optimizer."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished steps of the current epoch
    step: int = 0  # finished steps
    validated: int = 0  # the step of the last validation
    best: float = math.inf
    best_step: int = 0
    stale: int = 0  # validations since the best one
    bad: int = 0  # non-finite steps, which were skipped
    bad_row: int = 0  # consecutive non-finite steps up to now
    overflows: int = 0  # how often memory ran out
    # (rows, length) of micro-batches that did not fit and are cut from then on
    too_large: tuple[tuple[int, int], ...] = ()


class Steps(Protocol):
    """The training data as the trainer sees them."""

    workers: int | None  # loader processes, which change no batch; None: the trainer chooses

    def pace(self, epoch: int, index: int) -> float:
        """Inputs that one loader process prepares in a second."""

    def num_steps(self, epoch: int) -> int:
        """Steps of an epoch, the same on all ranks."""

    def steps(self, epoch: int, index: int) -> Iterable[StepBatches]:
        """Step `index` of `epoch`, both from 0, and so on without end."""

    def longest(self) -> Batch | None:
        """The micro-batch with the longest utterance, None if it cannot be read."""

    def densest(self) -> Iterable[Batch]:
        """Batches of the utterances with the most text per second, the same on all ranks."""
