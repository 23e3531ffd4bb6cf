"""A small transducer in training: the same updates by one process, and by several ranks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import yaml

from asrtool import config, distributed
from asrtool.experiment import TrainConfig, search_config
from asrtool.losses import LOSSES
from asrtool.model_folder import build_model
from asrtool.models import AsrModel
from asrtool.searchers import SEARCHERS
from asrtool.trainer import parallel, validation
from asrtool.trainer.objective import Objective
from asrtool.trainer.step import Stepper
from asrtool.types import Batch, ModelOutput, Padded
from tests.toy_conformer import double_precision
from tests.toy_ranks import join
from tests.toy_training import ToyStep

BINS, VOCABULARY = 20, 8
STATELESS = "{type: stateless, dim: 8}"
LSTM = "{type: lstm, num_layers: 2, dim: 8, dropout: 0.0}"
CONFIG = """
data: {{fbank: {{num_mel_bins: {bins}}}, batch: {{seconds: 20}}}}
model:
  type: hybrid
  encoder: {{type: conformer, num_layers: 2, dim: 16, num_heads: 2, ffn_dim: 32, kernel: 5,
    dropout: 0.0, causal: true, chunk: {{}},
    downsamplers: {{0: {{type: conv2d, factor: 4, channels: 4, causal: true}}}}}}
  heads: {{transducer: {{type: transducer, dim: 12, predictor: {predictor}}}}}
losses:
  transducer: {{type: transducer, weight: 1.0}}
optim: {{lr: 0.01, clip: 5.0}}
trainer: {{steps: 4}}
"""


def train_config(predictor: str = STATELESS) -> TrainConfig:
    text = CONFIG.format(bins=BINS, predictor=predictor)
    return config.decode(TrainConfig, yaml.compose(text))


def model(predictor: str = STATELESS) -> AsrModel:
    torch.manual_seed(0)
    return build_model(train_config(predictor), VOCABULARY)


def batch(numbers: Sequence[int]) -> Batch:
    """Utterances of different lengths, the first of which says nothing."""
    rows = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        inputs = torch.randn(30 + 11 * number, BINS, generator=generator)
        rows.append((inputs, torch.randint(1, VOCABULARY - 1, (number,), generator=generator)))
    inputs, targets = (Padded.stack(list(column)) for column in zip(*rows, strict=True))
    return Batch(ids=tuple(f"u{number}" for number in numbers), inputs=inputs, targets=targets)


def train(
    shares: Sequence[Sequence[Sequence[int]]],
    rank: int = 0,
    shared: str = "ddp",
    predictor: str = LSTM,
) -> Stepper:
    """Four updates on the utterances that `shares` deals to ranks and micro-batches."""
    settings, built = train_config(predictor), model(predictor)
    losses = {name: LOSSES.build(loss, eos=built.eos) for name, loss in settings.losses.items()}
    stepper = Stepper(
        settings.optim,
        built,
        Objective(losses, {name: loss.weight for name, loss in settings.losses.items()}),
        planned=4,
        precision="float32",
        device=torch.device("cpu"),
        seed=0,
        shared=shared,
    )
    batches = [batch(group) for group in shares[rank]]
    count = sum(len(group) for share in shares for group in share)
    step = ToyStep(count=count, batches=batches, epoch=0, index=0, last=False)
    stepper.dry_run(batch([3]))
    for number in range(1, 5):
        stepper.update(step, number)
    return stepper


def validate(stepper: Stepper) -> list[float]:
    """Scores of two utterances by the search that the head names for validation."""
    scores = []

    def search(built: AsrModel, outputs: ModelOutput, batch: Batch) -> dict:
        settings = search_config(built.heads["transducer"].greedy_search())
        nbests = SEARCHERS.build(settings, model=built).search(outputs.encoder)
        scores.extend(nbest[0].score for nbest in nbests)
        return {}

    validation.measure_batch(stepper, batch([2, 4]), search)
    return scores


def work(rank: int, world: int, port: int, folder: Path, shares: list[list[list[int]]]) -> None:
    """On each of several ranks: weights after training, and what is found by them in validation."""
    join(rank, world, port)
    found = {}
    with distributed.process_group(), double_precision():
        for shared in ("ddp", "fsdp"):
            stepper = train(shares, rank, shared)
            found[f"{shared} scores"] = validate(stepper)
            found[shared] = parallel.gather(stepper.model.state_dict(), keep=True)
    torch.save(found, folder / f"{rank}.pt")
