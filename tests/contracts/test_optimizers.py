"""Laws of every registered optimizer; a new entry is tested without writing a test."""

from __future__ import annotations

import os
import signal
from typing import Annotated

import pytest
import torch
import yaml

from asrtool import config
from asrtool.trainer.optim import DEFAULT, OPTIMIZERS, OptimConfig, SgdConfig
from tests.toy_training import ToySteps, toy_stepper, toy_trainer, weights_of

every_optimizer = pytest.mark.parametrize("name", OPTIMIZERS.names())
KIND = Annotated[object, OPTIMIZERS, DEFAULT]


def decode(text: str) -> OptimConfig:
    return config.decode(KIND, yaml.compose(text))


@every_optimizer
def test_a_run_that_a_signal_stopped_ends_with_the_same_bits(tmp_path, name):
    def send(epoch: int, index: int) -> None:
        if (epoch, index) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    settings = {"type": name, "lr": 0.02}
    whole = toy_trainer(tmp_path / "whole", optim=settings)
    assert whole.run() == 0
    stopped = toy_trainer(tmp_path / "cut", ToySteps(before=send), optim=settings)
    assert stopped.run() == signal.SIGTERM
    resumed = toy_trainer(tmp_path / "cut", optim=settings)
    assert resumed.run() == 0
    expected = weights_of(whole)
    assert all(torch.equal(value, expected[key]) for key, value in weights_of(resumed).items())


@every_optimizer
def test_its_configuration_survives_yaml(name):
    before = OPTIMIZERS.config_type(name)(lr=0.1)
    assert decode(yaml.safe_dump(config.encode(KIND, before))) == before


def test_without_a_type_it_is_adamw_and_is_written_without_one():
    before = decode("{lr: 0.1, betas: [0.9, 0.95]}")
    assert OPTIMIZERS.name_of(before) == "adamw" and before.betas == (0.9, 0.95)
    assert "type" not in config.encode(KIND, before)


def test_another_type_takes_its_own_keys_only():
    assert decode("{type: sgd, lr: 0.1, momentum: 0.5}").momentum == 0.5
    with pytest.raises(config.ConfigError, match="betas: unknown key for SgdConfig"):
        decode("{type: sgd, lr: 0.1, betas: [0.9, 0.95]}")


def test_sgd_steps_along_the_gradient():
    stepper = toy_stepper()
    optimizer = OPTIMIZERS.build(
        SgdConfig(lr=0.5, momentum=0.0), groups=[{"params": list(stepper.model.parameters())}]
    )
    (parameter, *_) = stepper.model.parameters()
    before, parameter.grad = parameter.detach().clone(), torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), before - 0.5)
