"""Two processes over gloo against one: the same gradient, the same end, and no hang."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

from asrtool.trainer import checkpoint
from tests import toy_conformer
from tests.toy_ranks import WORLD, go_on, one_gradient, spawn, start, work
from tests.toy_training import (
    ToyModel,
    ToySteps,
    difference,
    gradients,
    toy_step,
    toy_stepper,
    toy_trainer,
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("ranks")
    spawn(work, WORLD, folder)
    return [
        {**torch.load(folder / f"{rank}.pt", weights_only=True), "folder": folder}
        for rank in range(WORLD)
    ]


@pytest.mark.parametrize("name", ["uneven", "one rank empty"])
def test_two_ranks_have_the_gradient_of_one_process(ranks, name):
    alone = toy_stepper()
    alone.update(toy_step(list(range(8))), 1)
    for found in ranks:
        # float32 sums in another order
        assert difference(gradients(alone), found[name]) < 1e-6


def test_parameters_that_thaw_later_are_trained_on_all_ranks(ranks):
    assert [float(found["thawed"]["step"]) for found in ranks] == [2.0, 2.0]


def test_a_bad_utterance_of_one_rank_is_known_to_all(ranks):
    for found in ranks:
        assert [(entry["rank"], entry["not_finite"]) for entry in found["bad"]] == [
            (0, []),
            (1, ["utt1"]),
        ]


def test_a_run_on_two_ranks_ends_with_equal_weights_and_one_log(ranks):
    first, second = ranks
    assert first["ended"] == second["ended"] == 0
    assert all(
        torch.equal(value, second["weights"][name]) for name, value in first["weights"].items()
    )
    lines = (first["folder"] / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["event"] for line in lines].count("valid") == 3
    assert set(first["weights"]) == set(ToyModel().state_dict())


def test_four_ranks_have_the_gradient_of_one_process(tmp_path):
    shares = [[[0], [1]], [[2, 3]], [[4]], [[5], [6, 7]]]
    spawn(one_gradient, 4, tmp_path, shares)
    alone = toy_stepper()
    alone.update(toy_step(list(range(8))), 1)
    for rank in range(4):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert difference(gradients(alone), found) < 1e-6


def test_a_run_goes_on_with_another_number_of_ranks(tmp_path):
    def send(epoch: int, index: int) -> None:
        if (epoch, index) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)

    toy_trainer(tmp_path / "moved", ToySteps(before=send), model=ToyModel(dropout=0.0)).run()
    spawn(go_on, 2, tmp_path / "moved")
    stayed = toy_trainer(tmp_path / "stayed", model=ToyModel(dropout=0.0))
    stayed.run()
    moved = checkpoint.load(checkpoint.latest(tmp_path / "moved") / checkpoint.MODEL)
    assert checkpoint.latest(tmp_path / "moved").name == "step-00000009"
    for name, value in stayed.model.state_dict().items():
        # sums in another order, through Adam
        torch.testing.assert_close(moved[name], value, rtol=1e-4, atol=1e-5)


def test_a_checkpoint_that_rank_0_refuses_ends_all_ranks(tmp_path):
    toy_trainer(tmp_path / "run").run()
    for path in checkpoint.every(tmp_path / "run"):
        (path / checkpoint.STATE).write_text("{")
    ranks = start(go_on, WORLD, tmp_path / "run")
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [1, 1]


CUTS = {
    "micro-batches": [[[0, 1, 2], [3], [4, 5, 6, 7]]],
    "two ranks": [[[0, 1, 2], [3]], [[4, 5], [6, 7]]],
    "four ranks": [[[0], [1]], [[2, 3]], [[4]], [[5], [6, 7]]],
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_conformers_gradient_is_that_of_one_batch_however_the_step_is_cut(tmp_path, cut):
    """Equal; what is left in float32, five layers deep, is rounding."""
    one = [[list(range(8))]]
    whole = {"single": toy_conformer.gradient(one)}
    with toy_conformer.double_precision():
        whole["double"] = toy_conformer.gradient(one)
    spawn(toy_conformer.work, len(CUTS[cut]), tmp_path, CUTS[cut])
    found = torch.load(tmp_path / "gradients.pt", weights_only=True)
    for precision, tolerance in (("double", 1e-12), ("single", 3e-6)):
        ours, theirs = whole[precision], found[precision]
        distance = sum((ours[name] - theirs[name]).norm() ** 2 for name in ours) ** 0.5
        relative = float(distance / sum(value.norm() ** 2 for value in ours.values()) ** 0.5)
        print(f"{cut}, {precision} precision: {relative:.1e}")
        assert relative < tolerance
