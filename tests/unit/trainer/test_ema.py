"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asrtool.trainer.averaging import Ema
from tests.toy_training import ToyLinear, ToyModules


def model_of(value: float) -> nn.Module:
    model = ToyLinear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def test_the_average_follows_its_recursion():
    model = model_of(0.0)
    ema = Ema(model, 0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 3.0, 2.0, 5.0, 4.0, 4.0, 8.0, 1.0, 1.0], start=1):
        nn.init.constant_(model.weight, value)
        ema.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with ema.averaged():
        assert model.weight.item() == pytest.approx(expected)


def test_the_training_weights_return_even_after_an_error():
    model = model_of(1.0)
    ema = Ema(model, 0.9)
    nn.init.constant_(model.weight, 2.0)
    with pytest.raises(KeyError), ema.averaged():
        raise KeyError
    assert model.weight.item() == 2.0


def test_a_restored_average_goes_on_as_before():
    model, other = model_of(1.0), model_of(0.0)
    ema = Ema(model, 0.9)
    nn.init.constant_(model.weight, 2.0)
    ema.update(1)
    with ema.averaged() as trained:
        other.load_state_dict(model.state_dict())
        weights = {name: value.clone() for name, value in trained.items()}
    restored = Ema(other, 0.9)
    restored.restore(weights)
    assert torch.equal(other.weight, model.weight)
    with ema.averaged(), restored.averaged():
        assert torch.equal(other.weight, model.weight)


def test_what_is_never_trained_has_no_average():
    model = ToyModules({"0": model_of(1.0), "1": model_of(2.0)})
    model.frozen = frozenset({"0.weight"})
    with Ema(model, 0.5).averaged() as trained:
        assert set(trained) == {"1.weight"}


def test_many_tensors_at_once_are_averaged_as_each_alone():
    torch.manual_seed(0)
    model = ToyModules({str(n): ToyLinear(n + 1, 3) for n in range(4)})
    ema, alone = Ema(model, 0.9), {n: p.detach().clone() for n, p in model.named_parameters()}
    for step in range(1, 5):
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter)
            alone[name].lerp_(parameter.detach(), 1 - min(0.9, (1 + step) / (10 + step)))
        ema.update(step)
    with ema.averaged() as trained:
        assert all(torch.equal(value, alone[name]) for name, value in model.named_parameters())
        weights = {name: value.clone() for name, value in trained.items()}
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
