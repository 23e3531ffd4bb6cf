"""One optimizer step: the same gradient however it is cut, what is frozen, what is not finite,
precision.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from asrtool.errors import UserError
from asrtool.trainer import optim
from asrtool.trainer.objective import Objective
from asrtool.trainer.optim import GroupConfig
from tests.toy_training import (
    ToyLoss,
    ToyModel,
    ToySteps,
    difference,
    gradients,
    toy_batch,
    toy_objective,
    toy_step,
    toy_stepper,
    toy_trainer,
    weights_of,
)

NUMBERS = list(range(8))


@pytest.mark.parametrize("cut", [[3, 1, 4], [1] * 8, [7, 1]])
def test_micro_batches_have_the_gradient_of_the_whole_batch(cut):
    whole, parts = toy_stepper(), toy_stepper()
    whole.update(toy_step(NUMBERS), 1)
    bounds = [sum(cut[:i]) for i in range(len(cut) + 1)]
    parts.update(toy_step(*(NUMBERS[a:b] for a, b in zip(bounds, bounds[1:], strict=False))), 1)
    # float32 sums in another order
    assert difference(gradients(whole), gradients(parts)) < 1e-6


def test_the_reported_loss_is_per_utterance():
    result = toy_stepper().update(toy_step(NUMBERS[:3], NUMBERS[3:]), 1)
    stepper = toy_stepper()
    _, report = stepper.evaluate(stepper.model, toy_batch(NUMBERS))
    assert result.loss == pytest.approx(report.total.item() / 8, rel=1e-5)
    assert result.terms["classes"] == pytest.approx(result.loss)
    assert result.frames == sum(2 + number % 4 for number in NUMBERS)


def test_clipping_bounds_the_gradient_and_reports_its_norm_before():
    free, clipped = toy_stepper(), toy_stepper(clip=0.01)
    norm = free.update(toy_step(NUMBERS), 1).norm
    assert clipped.update(toy_step(NUMBERS), 1).norm == pytest.approx(norm)
    after = torch.cat([value.flatten() for value in gradients(clipped).values()]).norm()
    assert float(after) == pytest.approx(0.01, rel=1e-3)


def test_dropout_is_a_function_of_the_step():
    results = [
        toy_stepper(ToyModel(dropout=0.5)).update(toy_step(NUMBERS), step).loss
        for step in (1, 1, 2)
    ]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing_and_names_the_utterance(value):
    stepper = toy_stepper()
    before = {name: parameter.clone() for name, parameter in stepper.model.named_parameters()}
    result = stepper.update(
        toy_step([0, 1], [2, 3], change=lambda n, x: x * value if n == 2 else x), 1
    )
    assert [entry["not_finite"] for entry in result.bad] == [[], ["utt2"]]
    assert [entry["inputs_finite"] for entry in result.bad] == [True, False]
    assert result.bad[1]["module"] == "encoder.0"
    assert all(
        torch.equal(before[name], parameter) for name, parameter in stepper.model.named_parameters()
    )
    assert not stepper.optimizer.state


def test_the_first_module_that_overflows_is_named():
    model = ToyModel(dropout=0.0)
    model.head.weight.data.fill_(float("inf"))
    result = toy_stepper(model).update(toy_step(NUMBERS), 1)
    assert {entry["module"] for entry in result.bad} == {"head"}
    assert result.bad[0]["inputs_finite"]


def test_bad_batches_are_written_down_and_training_goes_on(tmp_path, caplog):
    data = ToySteps(change=lambda number, inputs: inputs * float("nan") if number == 5 else inputs)
    trainer = toy_trainer(tmp_path, data)
    trainer.train.longest = lambda: None
    assert trainer.run() == 0
    lines = [json.loads(line) for line in (tmp_path / "bad_batches.jsonl").read_text().splitlines()]
    assert [line["not_finite"] for line in lines] == [["utt5"]] * 3
    assert trainer.state.bad == 3
    assert "not finite and was skipped" in caplog.text
    assert all(torch.isfinite(value).all() for value in weights_of(trainer).values())


def test_too_many_bad_steps_in_a_row_end_the_run_with_advice(tmp_path):
    data = ToySteps(change=lambda number, inputs: inputs * float("nan"))
    trainer = toy_trainer(tmp_path, data, nonfinite_limit=2)
    with pytest.raises(
        UserError, match="step 2: 2 steps in a row were not finite.*check the audio"
    ):
        trainer.run()
    assert trainer.state.step == 2


def test_a_parameter_that_no_loss_reads_is_an_error():
    model = ToyModel()
    model.unread = nn.Linear(2, 2)
    with pytest.raises(
        UserError,
        match="2 trainable parameters got no gradient: unread.weight, unread.bias; freeze",
    ):
        toy_stepper(model).update(toy_step(NUMBERS), 1)


def test_frozen_parameters_stay_and_thawed_ones_learn():
    groups = {"head.*": GroupConfig(freeze=True), "encoder.0.*": GroupConfig(freeze_until=1)}
    stepper = toy_stepper(groups=groups)
    start = {name: value.clone() for name, value in stepper.model.state_dict().items()}

    def changed() -> set[str]:
        return {
            name
            for name, value in stepper.model.state_dict().items()
            if not torch.equal(value, start[name])
        }

    stepper.update(toy_step(NUMBERS), 1)
    first = changed()
    stepper.update(toy_step(NUMBERS), 2)
    assert first == {"encoder.1.weight", "encoder.1.bias"}
    assert changed() == first | {"encoder.0.weight", "encoder.0.bias"}


def test_bf16_autocast_keeps_float32_weights_and_losses():
    stepper = toy_stepper(precision="bf16")
    _, report = stepper.evaluate(stepper.model, toy_batch(NUMBERS))
    result = stepper.update(toy_step(NUMBERS), 1)
    exact = toy_stepper().update(toy_step(NUMBERS), 1)
    assert report.total.dtype == torch.float32
    assert {value.dtype for value in stepper.model.state_dict().values()} == {torch.float32}
    assert result.loss == pytest.approx(exact.loss, rel=0.02)  # bf16 has 8 bits


def test_a_scale_that_is_too_large_is_lowered_and_is_no_bad_batch():
    stepper = toy_stepper(precision="fp16")
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    before = {name: parameter.clone() for name, parameter in stepper.model.named_parameters()}
    results = [stepper.update(toy_step(NUMBERS), step) for step in range(1, 4)]
    assert [result.bad for result in results] == [None] * 3
    assert stepper.scaler.get_scale() == 2.0**37
    assert all(
        torch.equal(before[name], parameter) for name, parameter in stepper.model.named_parameters()
    )


def test_fp16_training_with_a_fitting_scale_updates_the_weights():
    stepper = toy_stepper(precision="fp16")
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    stepper.update(toy_step(NUMBERS), 1)
    exact = toy_stepper()
    exact.update(toy_step(NUMBERS), 1)
    # fp16 has 11 bits, and sums of them
    assert difference(gradients(exact), gradients(stepper)) < 0.02


def test_a_batch_that_is_not_finite_leaves_the_scale_alone():
    stepper = toy_stepper(precision="fp16")
    stepper.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    result = stepper.update(toy_step(NUMBERS, change=lambda n, x: x * float("nan")), 1)
    assert result.bad is not None
    assert stepper.scaler.get_scale() == 2.0**8


def test_a_term_of_weight_zero_is_not_computed():
    class Untouchable(ToyLoss):
        def __call__(self, outputs, batch):
            raise RuntimeError("computed")

    objective = Objective({"on": ToyLoss(), "off": Untouchable()}, {"on": 0.5, "off": 0.0})
    batch = toy_batch(NUMBERS)
    report = objective(ToyModel(dropout=0.0)(batch), batch)
    assert objective.terms == ("on",)
    assert report.total.item() == pytest.approx(0.5 * float(report.terms["on"].sum()))


def test_an_objective_without_any_weight_is_refused():
    with pytest.raises(ValueError, match="every loss has weight 0"):
        toy_objective(weight=0.0)


def test_the_objective_tells_what_a_loss_skipped():
    batch = toy_batch([0, 1], lambda number, inputs: inputs[:1] if number == 1 else inputs)
    report = toy_objective()(ToyModel()(batch), batch)
    assert report.skipped.tolist() == [False, True]
    assert float(report.terms["classes"][1]) == 0.0


def test_a_loss_that_is_not_one_number_per_utterance_is_refused():
    class Mean(ToyLoss):
        def __call__(self, outputs, batch):
            return super().__call__(outputs, batch).mean()

    batch = toy_batch(NUMBERS)
    with pytest.raises(ValueError, match=r"'classes' returned shape \(\); expected \(8,\)"):
        toy_objective(Mean())(ToyModel()(batch), batch)


def test_the_rates_of_frozen_and_scaled_groups_follow_the_schedule():
    stepper = toy_stepper(groups={"head.*": GroupConfig(lr_scale=0.5)})
    stepper.update(toy_step(NUMBERS), 1)
    assert sorted({group["lr"] for group in stepper.optimizer.param_groups}) == [0.05, 0.1]
    assert optim.unfreeze_steps(replace(stepper.config, groups={})) == []
