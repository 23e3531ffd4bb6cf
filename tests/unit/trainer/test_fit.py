"""What is proposed to fit does, and hardly more would."""

from __future__ import annotations

import pytest

from asrtool.errors import UserError
from asrtool.trainer.capacity import fit
from asrtool.trainer.capacity.fit import Sample, propose, tried
from tests.toy_training import toy_batch, toy_stepper

SECONDS = 0.01
# utterance number n has 2 + n % 4 frames
SAMPLES = [
    Sample(name="longest", batch=lambda count: toy_batch([3] * count)),
    Sample(name="shortest", batch=lambda count: toy_batch([4] * count)),
]


@pytest.fixture(autouse=True)
def tensors_alone(monkeypatch):
    """Without a context of 1.5 GB, in which a toy would vanish."""
    monkeypatch.setattr(fit, "CONTEXT", 0)


def test_micro_batches_of_the_proposed_size_fit_and_larger_ones_do_not():
    stepper, budget = toy_stepper(), 400_000
    proposal = propose(stepper, SAMPLES, SECONDS, budget / 0.9)
    assert proposal.budget == pytest.approx(budget)
    peaks = []
    for factor in (1.0, 1.2):
        rows = {cost.name: int(factor * proposal.size / cost.length) for cost in proposal.costs}
        peaks.append([fit._peak(stepper, one.batch(rows[one.name])) for one in SAMPLES])
    # far above what was measured the peak may be elsewhere in the step; the margin is for that too
    assert 0.95 * budget < max(peaks[0]) < 1.05 * budget < max(peaks[1])


def test_weights_gradients_and_the_state_of_the_optimizer_count():
    stepper = toy_stepper()
    proposal = propose(stepper, SAMPLES, SECONDS, 400_000)
    weights = sum(value.nbytes for value in stepper.model.parameters())
    # Adam holds two moments beside weights and gradients
    assert proposal.update >= 4 * weights
    assert all(cost.fixed >= 4 * weights for cost in proposal.costs)


def test_nothing_is_left_behind():
    stepper = toy_stepper()
    propose(stepper, SAMPLES, SECONDS, 400_000)
    assert all(value.grad is None for value in stepper.model.parameters())


def test_an_utterance_that_does_not_fit_at_all_is_told():
    with pytest.raises(UserError, match=r"an utterance of 0.1 seconds does not fit.*max_seconds"):
        propose(toy_stepper(), SAMPLES, SECONDS, 1500)


def test_on_a_gpu_a_proposal_that_does_not_fit_is_lowered(monkeypatch):
    tries = []

    def peak(stepper, batch):
        tries.append(len(batch))
        return None if len(batch) > 60 else 10.0 * len(batch)

    monkeypatch.setattr(fit, "_peak", peak)
    # 100 rows of 0.05 s; 60 run, and 50 are within the budget
    size = tried(None, SAMPLES[:1], SECONDS, 5.0, 500.0)
    assert tries == [100, 90, 81, 72, 65, 59, 53, 47]
    assert size == pytest.approx(5.0 * 0.9**7)
