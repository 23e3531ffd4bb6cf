"""What only a GPU can show: it runs out of memory, and `asrtool fit` finds how much it has."""

from __future__ import annotations

import pytest
import torch

from asrtool.trainer.capacity.fit import Sample, propose
from asrtool.trainer.optim import AdamWConfig
from asrtool.trainer.step import Stepper
from asrtool.types import Batch, Padded
from tests.toy_training import (
    FEATURES,
    ToyModel,
    ToyStep,
    difference,
    gradients,
    toy_objective,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
FRAMES, ALLOWED = 400_000, 400_000_000  # eight rows take about twice the bytes allowed


def batch(rows: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(rows, FRAMES, FEATURES, generator=generator)
    inputs = Padded(data, torch.full((rows,), FRAMES))
    targets = Padded(torch.arange(rows)[:, None] % 5, torch.ones(rows, dtype=torch.int64))
    return Batch(ids=tuple(map(str, range(rows))), inputs=inputs, targets=targets)


def stepper() -> Stepper:
    return Stepper(
        AdamWConfig(lr=0.1, clip=float("inf")),
        ToyModel(dropout=0.0),
        toy_objective(),
        planned=10,
        precision="float32",
        device=torch.device("cuda", 0),
        seed=0,
    )


@pytest.fixture
def little():
    """So many bytes, and no more, for this process."""
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(ALLOWED / whole)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_a_step_that_runs_out_of_memory_goes_on(little):
    cut = stepper()
    result = cut.update(ToyStep(count=8, batches=[batch(8)], epoch=0, index=0, last=False), 1)
    assert result.overflows
    torch.cuda.set_per_process_memory_fraction(1.0)
    whole = stepper()
    whole.update(ToyStep(count=8, batches=[batch(8)], epoch=0, index=0, last=False), 1)
    # float32 sums over three million frames in another order
    assert difference(gradients(whole), gradients(cut)) < 1e-2


def test_what_is_proposed_runs(little):
    proposal = propose(stepper(), [Sample(name="longest", batch=batch)], 0.01, ALLOWED)
    rows = int(proposal.size / (FRAMES * 0.01))
    assert 1 <= rows < 8
    one = ToyStep(count=rows, batches=[batch(rows)], epoch=0, index=0, last=False)
    assert not stepper().update(one, 1).overflows
