"""`data.workers: auto`: as many loader processes as the device needs."""

from __future__ import annotations

import re

import pytest
import torch

from asrtool.trainer.capacity.feeding import Feeding, cores
from tests.toy_training import ToySteps, toy_trainer, weights_of


@pytest.mark.parametrize(
    ("eats", "feeds", "cores", "workers"),
    # 1.5 times the ratio, at least one, at most the cores
    [(400, 100, 16, 6), (10, 100, 16, 1), (4000, 100, 16, 16), (400, 0, 3, 3)],
)
def test_the_number_follows_from_what_was_measured(eats, feeds, cores, workers):
    feeding = Feeding(eats=eats, feeds=feeds, cores=cores)
    assert feeding.workers == workers
    assert ("cores for no more" in feeding.describe(0.01)) == (feeding.needed > cores)


def test_tokens_are_no_hours():
    text = Feeding(eats=4000, feeds=5000, cores=4).describe(None)
    assert "the device trains on 4e+03 tokens a second, a loader process prepares 5e+03" in text


def test_the_ranks_of_a_machine_share_its_cores(monkeypatch):
    monkeypatch.setattr("asrtool.system.processes.cores", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert cores() == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert cores() == 1


def test_it_is_said_before_the_first_step(tmp_path, log):
    data = ToySteps(workers=None)
    trainer = toy_trainer(tmp_path, data)
    trainer.stepper.speed = lambda batch: 3000.0
    trainer.run()
    # 3000 frames a second of 10 ms are 30 hours an hour; ToySteps.pace says 1000
    (said,) = re.findall(r"data.workers: auto is (\d+): the device trains on 30 hours of", log.text)
    assert "a loader process prepares 10" in log.text
    assert data.workers == int(said) == min(5, cores())


def test_the_measurement_changes_no_weight(tmp_path):
    measured = toy_trainer(tmp_path / "measured", ToySteps(workers=None))
    plain = toy_trainer(tmp_path / "plain", ToySteps(workers=0))
    for trainer in (measured, plain):
        trainer.run()
    assert measured.train.workers >= 1
    for name, value in weights_of(plain).items():
        assert torch.equal(value, weights_of(measured)[name])
