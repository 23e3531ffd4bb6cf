from __future__ import annotations

import pytest
import torch

from asrtool.nn.dropout import Dropout, random_mask
from asrtool.nn.feed_forward import DroppedSilu, FeedForward


def test_the_mean_is_kept_and_the_rate_is_right():
    torch.manual_seed(0)
    y = Dropout(0.1)(torch.ones(1000, 1000))
    assert (y == 0).float().mean() == pytest.approx(26 / 256, abs=2e-3)  # 6 standard deviations
    assert y.mean() == pytest.approx(1, abs=2e-3)


def test_a_small_rate_is_not_rounded_away():
    torch.manual_seed(0)
    assert (Dropout(1e-4)(torch.ones(1000, 1000)) == 0).any()


def test_torch_seeds_decide_the_mask():
    x, dropout = torch.ones(100), Dropout(0.5)
    torch.manual_seed(3)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(3)
    assert torch.equal(dropout(x), first) and not torch.equal(first, second)


def test_neighbours_are_dropped_independently():
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(1_000_001)) > 0).float() - 0.5
    for lag in (1, 2, 8):  # 8 bytes are one random word
        # 10 standard deviations
        assert (kept[lag:] * kept[:-lag]).mean() * 4 == pytest.approx(0, abs=0.01)


def test_gradients_pass_where_values_did():
    torch.manual_seed(0)
    x = torch.randn(50, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.where(y == 0, 0.0, 2.0))


def test_in_place_gives_the_same_gradients():
    grads = []
    for inplace in (False, True):
        torch.manual_seed(0)
        x = torch.linspace(-1, 1, 50, requires_grad=True)
        Dropout(0.3, inplace=inplace)(torch.nn.functional.silu(x)).sum().backward()
        grads.append(x.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("block", [7, 1000])
def test_silu_in_one_pass_equals_silu_and_dropout(block, monkeypatch):
    monkeypatch.setattr("asrtool.nn.feed_forward.BLOCK", block)
    results = []
    for fused in (False, True):
        torch.manual_seed(0)
        x = torch.linspace(-30, 30, 60).view(3, 20).requires_grad_()
        if fused:
            y = DroppedSilu.apply(x.clone(), 0.3)
        else:
            y = torch.nn.functional.silu(x) * random_mask(x.shape, 0.3, x.dtype)
        (y * torch.linspace(1, 2, 20)).sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(*results)


def test_feed_forwards_draw_the_same_masks_in_every_type():
    torch.manual_seed(0)
    x, feed_forward = torch.randn(40, 8), FeedForward(8, 64, dropout=0.5)
    feed_forward.down_proj = torch.nn.Identity()
    torch.manual_seed(1)
    exact = feed_forward(x)
    torch.manual_seed(1)
    coarse = feed_forward.bfloat16()(x.bfloat16()).float()
    assert torch.equal(exact == 0, coarse == 0)
    torch.testing.assert_close(coarse, exact, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("dropout", [Dropout(0.5).eval(), Dropout(0.0)])
def test_without_training_or_rate_nothing_happens(dropout):
    x = torch.randn(10)
    assert dropout(x) is x


def test_bfloat16_stays_bfloat16():
    assert Dropout(0.5)(torch.ones(9, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_rate_of_1_is_refused():
    with pytest.raises(ValueError, match="not a probability below 1"):
        Dropout(1.0)
