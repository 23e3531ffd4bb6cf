"""Shapes of the learning-rate schedules."""

from __future__ import annotations

import math

import pytest

from asrtool.trainer.schedules import (
    SCHEDULES,
    ConstantConfig,
    CosineConfig,
    InverseSqrtConfig,
    LinearConfig,
    OneCycleConfig,
    TriStageConfig,
)

EVERY = [
    ConstantConfig(warmup=10),
    InverseSqrtConfig(warmup=10),
    LinearConfig(warmup=10),
    CosineConfig(warmup=10),
    OneCycleConfig(),
    TriStageConfig(),
]


@pytest.mark.parametrize("config", EVERY, ids=lambda config: SCHEDULES.name_of(config))
def test_the_peak_is_one_and_no_step_is_above_or_below_zero(config):
    schedule = SCHEDULES.build(config, planned=100)
    factors = [schedule.factor(step) for step in range(1, 201)]
    assert max(factors) == pytest.approx(1.0)
    assert min(factors) >= 0.0


def test_every_registered_schedule_is_tested_here():
    assert {SCHEDULES.name_of(config) for config in EVERY} == set(SCHEDULES.names())


@pytest.mark.parametrize(
    ("config", "values"),
    [
        (ConstantConfig(), {1: 1.0, 500: 1.0}),
        (ConstantConfig(warmup=4), {1: 0.25, 4: 1.0, 5: 1.0}),
        (InverseSqrtConfig(warmup=100), {1: 0.01, 100: 1.0, 400: 0.5, 10000: 0.1}),
        (LinearConfig(warmup=20, end=0.1), {10: 0.5, 20: 1.0, 60: 0.55, 100: 0.1, 150: 0.1}),
        (CosineConfig(warmup=20), {10: 0.5, 20: 1.0, 60: 0.5, 100: 0.0}),
        (OneCycleConfig(start=0.2, end=0.0), {15: 0.6, 30: 1.0, 65: 0.5, 100: 0.0}),
        (
            TriStageConfig(start=0.0, end=0.01),
            {5: 0.5, 10: 1.0, 50: 1.0, 75: 0.1, 100: 0.01, 120: 0.01},
        ),
        (LinearConfig(total=50), {25: 0.5, 50: 0.0}),
        (CosineConfig(warmup=0.2), {10: 0.5, 20: 1.0, 60: 0.5, 100: 0.0}),
    ],
)
def test_values_at_chosen_steps_of_a_run_of_100(config, values):
    schedule = SCHEDULES.build(config, planned=100)
    assert {step: schedule.factor(step) for step in values} == pytest.approx(values, abs=1e-12)


@pytest.mark.parametrize(
    "config", [LinearConfig(warmup=200), CosineConfig(warmup=100), OneCycleConfig(warmup=-1)]
)
def test_a_warm_up_longer_than_the_run_is_refused(config):
    with pytest.raises(ValueError, match="of 100 steps"):
        SCHEDULES.build(config, planned=100)


def test_a_run_of_one_step_has_a_finite_rate():
    for config in (OneCycleConfig(), TriStageConfig(), LinearConfig(), CosineConfig()):
        assert math.isfinite(SCHEDULES.build(config, planned=1).factor(1))
