"""The gradient of a Conformer with CTC and an attention decoder, of a step that is cut in several
ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from asrtool import distributed
from asrtool.decoders import TransformerDecoderConfig
from asrtool.encoders import ConformerConfig
from asrtool.losses import LOSSES, CrossEntropyConfig, CtcConfig
from asrtool.models import MODELS, HybridConfig
from asrtool.trainer.objective import Objective
from asrtool.trainer.optim import AdamWConfig
from asrtool.trainer.step import Stepper
from asrtool.types import Batch, Padded
from tests.toy_ranks import join
from tests.toy_training import ToyStep

BINS, VOCABULARY = 80, 30


def batch(numbers: list[int]) -> Batch:
    """Utterances of 0.6 to 2 seconds, with a token every 0.1 seconds."""
    rows = []
    for number in numbers:
        generator = torch.Generator().manual_seed(number)
        frames = 60 + 20 * number
        tokens = torch.randint(2, VOCABULARY - 1, (frames // 10,), generator=generator)
        rows.append((torch.randn(frames, BINS, generator=generator), tokens))
    inputs, targets = (Padded.stack(list(column)) for column in zip(*rows, strict=True))
    return Batch(ids=tuple(map(str, numbers)), inputs=inputs, targets=targets)


@contextmanager
def double_precision() -> Iterator[None]:
    """Inside, everything is float64, also what asks for float32."""
    single = Tensor.float
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        Tensor.float = single


def stepper(device: torch.device) -> Stepper:
    torch.manual_seed(0)
    encoder = ConformerConfig(num_layers=3, dim=64, num_heads=4, ffn_dim=128, kernel=7, dropout=0.0)
    decoder = TransformerDecoderConfig(num_layers=2, num_heads=4, ffn_dim=128, dropout=0.0)
    model = MODELS.build(
        HybridConfig(encoder=encoder, decoder=decoder),
        input_dim=BINS,
        vocab_size=VOCABULARY,
        frame_shift=0.01,
        heads=frozenset({"ctc", "attention"}),
    )
    configs = {"ctc": CtcConfig(weight=0.3), "attention": CrossEntropyConfig(weight=0.7)}
    losses = {name: LOSSES.build(config, eos=VOCABULARY - 1) for name, config in configs.items()}
    objective = Objective(losses, {name: config.weight for name, config in configs.items()})
    config = AdamWConfig(lr=1e-3, clip=float("inf"), betas=(0.5, 0.9))
    return Stepper(config, model, objective, planned=1, precision="float32", device=device, seed=0)


def step(shares: list[list[list[int]]], rank: int = 0) -> ToyStep:
    """The utterances that `shares` deals to ranks and micro-batches."""
    count = sum(len(group) for share in shares for group in share)
    batches = [batch(group) for group in shares[rank]]
    return ToyStep(count=count, batches=batches, epoch=0, index=0, last=False)


def gradient(shares: list[list[list[int]]], rank: int = 0) -> dict[str, Tensor]:
    ours = stepper(torch.device("cpu"))
    ours.update(step(shares, rank), 1)
    names = {id(parameter): name for name, parameter in ours.model.named_parameters()}
    return {
        names[id(parameter)]: 2 * state["exp_avg"]
        for parameter, state in ours.optimizer.state.items()
    }


def work(rank: int, world: int, port: int, folder: Path, shares: list[list[list[int]]]) -> None:
    join(rank, world, port)
    with distributed.process_group():
        found = {"single": gradient(shares, rank)}
        with double_precision():
            found["double"] = gradient(shares, rank)
    if rank == 0:
        torch.save(found, folder / "gradients.pt")
