"""Consistency of two views (CR-CTC): values and gradients written out, its warm-up, its views."""

from __future__ import annotations

import pytest
import torch

from asrtool.losses import LOSSES
from asrtool.losses.consistency import ConsistencyConfig, consistency
from asrtool.trainer.objective import Objective
from asrtool.types import Batch, EncoderOutput, ModelOutput, Padded

LENGTHS = torch.tensor([4, 4, 3, 3])


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(4, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def written_out(own: torch.Tensor, other: torch.Tensor) -> float:
    """sum_t sum_v q (log q - log p), frame by frame."""
    total = 0.0
    for p, q in zip(own.softmax(-1), other.softmax(-1), strict=True):
        total += sum(float(b * (b.log() - a.log())) for a, b in zip(p, q, strict=True))
    return total


def test_each_row_has_the_divergence_from_the_other_view(logits):
    got = consistency(logits, LENGTHS)
    for row, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        frames = int(LENGTHS[row])
        expected = written_out(logits[row, :frames], logits[other, :frames])
        assert got[row].item() == pytest.approx(expected, abs=1e-5)


def test_equal_views_cost_nothing(logits):
    same = logits[:1].expand(2, -1, -1)
    assert consistency(same, LENGTHS[:2]).tolist() == pytest.approx([0, 0], abs=1e-6)


def test_the_gradient_of_a_view_is_that_of_its_own_divergence(logits):
    """p - q in each valid frame, as in cross entropy with q: the other view is a constant."""
    logits.requires_grad_()
    consistency(logits, LENGTHS).sum().backward()
    for row, other in ((0, 1), (3, 2)):
        frames = int(LENGTHS[row])
        expected = logits[row].softmax(-1) - logits[other].softmax(-1)
        torch.testing.assert_close(
            logits.grad[row, :frames], expected[:frames].detach(), atol=1e-6, rtol=1e-5
        )
        assert (logits.grad[row, frames:] == 0).all()


def test_views_that_do_not_fit_are_refused(logits):
    with pytest.raises(ValueError, match="3 rows are not two views"):
        consistency(logits[:3], LENGTHS[:3])
    uneven = torch.tensor([4, 4, 3, 2])
    with pytest.raises(ValueError, match=r"utterance \(b\) have 3 and 2 frames; behind key frames"):
        consistency(logits, uneven, ("a", "a", "b", "b"))


def objective(**changes) -> Objective:
    configs = {"ctc": LOSSES.config_type("ctc")(weight=1.0)}
    configs["consistency"] = ConsistencyConfig(weight=0.2, **changes)
    losses = {name: LOSSES.build(config, eos=4) for name, config in configs.items()}
    return Objective(losses, {name: config.weight for name, config in configs.items()})


def outputs(logits: torch.Tensor, views: int) -> tuple[ModelOutput, Batch]:
    frames = Padded(logits.float(), LENGTHS)
    targets = Padded(torch.ones(4, 1, dtype=torch.int64), torch.ones(4, dtype=torch.int64))
    batch = Batch(ids=("a", "a", "b", "b"), inputs=frames, targets=targets, views=views)
    encoder = EncoderOutput(frames=frames, positions=torch.zeros(4, 4))
    return ModelOutput(encoder=encoder, heads={"ctc": frames}), batch


@pytest.mark.parametrize(
    ("warmup", "step", "share"), [(0.1, 25, 0.25), (0.1, 400, 1.0), (50.0, 25, 0.5), (0.0, 1, 1.0)]
)
def test_the_weight_grows_linearly(logits, warmup, step, share):
    both = objective(warmup=warmup)
    both.begin(step, planned=1000)
    report = both(*outputs(logits, views=2))
    expected = report.terms["ctc"].sum() + 0.2 * share * report.terms["consistency"].sum()
    torch.testing.assert_close(report.total, expected)


def test_validation_which_has_one_view_leaves_it_out(logits):
    both = objective()
    assert both.terms == ("ctc", "consistency") and both.validated == ("ctc",)
    assert set(both(*outputs(logits, views=1)).terms) == {"ctc"}


def test_it_needs_a_loss_beside_it():
    loss = LOSSES.build(ConsistencyConfig(weight=1.0), eos=4)
    with pytest.raises(ValueError, match="add a loss that reads the text, such as ctc"):
        Objective({"consistency": loss}, {"consistency": 1.0})
