"""Micro-batches that do not fit into memory: the step goes on, with the gradient of the whole."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from asrtool.errors import UserError
from asrtool.trainer import checkpoint
from asrtool.trainer.capacity.memory import Bound, Shape, ran_out
from asrtool.types import Padded
from tests.toy_memory import Hungry, average, train, train_overlapping
from tests.toy_ranks import spawn, start
from tests.toy_training import (
    ToyModel,
    ToySteps,
    difference,
    gradients,
    toy_batch,
    toy_step,
    toy_stepper,
    toy_trainer,
    weights_of,
)

EIGHT = list(range(8))


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("groups", [[EIGHT], [EIGHT[:2], EIGHT[2:]]], ids=["one", "second"])
def test_a_step_that_runs_out_of_memory_has_the_gradient_of_the_whole(where, groups):
    whole, cut = toy_stepper(), toy_stepper(Hungry(3, where))
    expected = whole.update(toy_step(*groups), 1)
    result = cut.update(toy_step(*groups), 1)
    assert difference(gradients(whole), gradients(cut)) < 1e-6
    # reports count each utterance once
    assert result.loss == pytest.approx(expected.loss)
    assert (result.frames, result.utterances) == (expected.frames, 8)
    assert [one.shape.rows for one in result.overflows] == ([8, 4] if len(groups) == 1 else [6])
    assert result.overflows[0].ids == tuple(f"utt{number}" for number in groups[-1])


def test_no_buffer_is_changed_twice():
    stepper = toy_stepper(Hungry(3))
    stepper.update(toy_step(EIGHT), 1)
    # 8 and 4 rows failed before 4 times 2 rows
    assert stepper.model.rows == [8, 4, 2, 2, 2, 2]
    assert float(stepper.model.passes) == 4


def test_later_micro_batches_of_the_shape_are_cut_from_the_start():
    stepper = toy_stepper(Hungry(4))
    stepper.update(toy_step(EIGHT), 1)
    stepper.model.rows.clear()
    for step in (2, 3):
        assert not stepper.update(toy_step(EIGHT, EIGHT[:3]), step).overflows
    assert stepper.model.rows == [4, 4, 3] * 2


def test_a_single_utterance_that_does_not_fit_is_an_error():
    with pytest.raises(
        UserError, match=r"1 utterance \(utt0\) alone does not fit .* lower data.max_sec"
    ):
        toy_stepper(Hungry(0)).update(toy_step(EIGHT), 1)


def test_a_single_process_may_stop_instead():
    stepper = toy_stepper(Hungry(3), out_of_memory="stop")
    with pytest.raises(UserError, match="trainer.out_of_memory is stop: lower data.batch.max_sec"):
        stepper.update(toy_step(EIGHT), 1)


def test_another_error_is_not_taken_for_one_of_memory():
    class Broken(ToyModel):
        def forward(self, batch):
            raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes"):
        toy_stepper(Broken()).update(toy_step(EIGHT), 1)
    assert ran_out(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"))
    assert ran_out(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"))
    assert ran_out(torch.cuda.OutOfMemoryError("CUDA out of memory."))


def test_views_of_an_utterance_stay_together():
    batch = replace(toy_batch([0, 0, 1, 1, 2, 2]), views=2, labels={"a": torch.arange(6)})
    bound = Bound()
    bound.add([(3, 1)])
    parts = bound.cut([batch])
    assert [part.ids for part in parts] == [("utt0", "utt0"), ("utt1", "utt1"), ("utt2", "utt2")]
    assert [part.labels["a"].tolist() for part in parts] == [[0, 1], [2, 3], [4, 5]]
    joined = Padded(*map(torch.cat, zip(*(part.inputs for part in parts), strict=True)))
    assert torch.equal(joined.data, batch.inputs.data)


def test_a_bound_keeps_the_smallest_shapes():
    bound = Bound()
    bound.add([(8, 100), (16, 90), [9, 120], (4, 200)])
    assert bound.shapes == (Shape(4, 200), Shape(8, 100), Shape(16, 90))
    bound.add([(4, 90)])
    assert bound.shapes == (Shape(4, 90),)


# -- runs -------------------------------------------------------------------


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_a_run_says_what_did_not_fit_and_what_to_set(tmp_path, caplog):
    toy_trainer(tmp_path, model=Hungry(4)).run()
    line, *more = [one.message for one in caplog.records if "out of memory" in one.message]
    assert "step 1: rank 0 ran out of memory with 8 rows of up to 0.05 seconds" in line
    assert "0.4 seconds with padding" in line
    assert "set data.batch.max_seconds_per_device below 0.4" in line
    entries = [one for one in records(tmp_path) if one["event"] == "out_of_memory"]
    assert entries[0]["step"] == 1
    assert len(entries[0]["ids"]) == 8
    (finished,) = [one for one in records(tmp_path) if one["event"] == "finished"]
    # once for each shape of 8 rows that is no larger than one before
    assert finished["overflows"] == len(entries) == 1 + len(more) <= 4


def test_an_interrupted_run_ends_with_the_same_bits_dropout_included(tmp_path):
    """The bound is part of the checkpoint: after it, no step fails again."""

    def run(name: str, most: int, **settings):
        data = ToySteps(size=25, **settings)
        trainer = toy_trainer(tmp_path / name, data, model=Hungry(most, dropout=0.2), ema=0.9)
        return trainer, trainer.run()

    undisturbed, _ = run("undisturbed", 4)

    def stop(epoch: int, index: int) -> None:
        if (epoch, index) == (1, 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("resumed", 4, before=stop)
    assert checkpoint.latest(tmp_path / "resumed") is not None
    resumed, _ = run("resumed", 4)
    for name, value in weights_of(undisturbed).items():
        assert name == "passes" or torch.equal(value, weights_of(resumed)[name]), name
    assert max(resumed.model.rows) <= 4
    events = [one["event"] for one in records(tmp_path / "resumed")]
    assert events.count("out_of_memory") == 1


def test_gradients_become_the_mean_over_ranks_and_buffers_those_of_rank_0(tmp_path):
    spawn(average, 2, tmp_path)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["both.weight"].tolist() == [[1.5, 1.5]]
        assert found["one.weight"].tolist() == [[3.0, 3.0]]
        assert found["none.weight"] is None
        assert found["count"] == 10


@pytest.mark.parametrize("work", [train, train_overlapping], ids=["fits", "stop"])
def test_ranks_without_trouble(tmp_path, work):
    """Gradients that are summed after the backward pass are those of DDP, which sums during it."""
    spawn(work, 2, tmp_path, [8, 8])
    alone = toy_trainer(tmp_path / "alone", model=Hungry(8), ema=0.9)
    alone.run()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["shapes"] == []
        for name, value in weights_of(alone).items():
            torch.testing.assert_close(found["weights"][name], value, rtol=1e-4, atol=1e-5)


def test_one_of_two_ranks_runs_out_of_memory(tmp_path):
    """All end with the weights of one process that had enough, and know what does not fit."""
    spawn(train, 2, tmp_path, [8, 2])
    alone = toy_trainer(tmp_path / "alone", model=Hungry(8), ema=0.9)
    alone.run()
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for name, value in weights_of(alone).items():
        if name != "passes":
            torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-5)
            assert torch.equal(first["weights"][name], second["weights"][name])
    # rank 1 failed once; then both cut
    assert second["rows"].count(4) == 1
    assert first["rows"].count(4) == 1
    assert first["shapes"] == second["shapes"] != []
    (entry,) = [one for one in records(tmp_path / "run") if one["event"] == "out_of_memory"]
    assert entry["rank"] == 1


@pytest.mark.parametrize("work", [train, train_overlapping], ids=["one utterance", "stop"])
def test_a_rank_that_cannot_go_on_ends_the_other(tmp_path, work):
    ranks = start(work, 2, tmp_path, [8, 0 if work is train else 2])
    for process in ranks:
        process.join(300)
    assert all(process.exitcode for process in ranks)
