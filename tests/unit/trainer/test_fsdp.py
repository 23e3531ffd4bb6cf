"""FSDP2 on two processes over gloo against one process, on a Llama of a few hundred parameters."""

from __future__ import annotations

import json

import pytest
import torch

from asrtool.errors import UserError
from asrtool.trainer import checkpoint
from asrtool.trainer.config import TrainerConfig
from asrtool.trainer.fsdp import Shards
from asrtool.trainer.parallel import Replicas
from tests import toy_interruptions as interruptions
from tests.toy_corpus import write_corpus
from tests.toy_llama import GROUPS, LOPSIDED, SHARES, ToyLlama, run, work, work_in_groups
from tests.toy_memory import Hungry
from tests.toy_ranks import spawn
from tests.toy_training import toy_step, toy_stepper

WORLD = 2


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("shards")
    spawn(work, WORLD, folder)
    return [
        {**torch.load(folder / f"{rank}.pt", weights_only=True), "folder": folder}
        for rank in range(WORLD)
    ]


def close(first: dict, second: dict) -> float:
    assert set(first) == set(second)
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize(("name", "shares"), [("uneven", SHARES), ("lopsided", LOPSIDED)])
def test_steps_on_shards_are_those_of_one_process(ranks, name, shares):
    alone = toy_stepper(ToyLlama(), groups=GROUPS, lr=0.01, clip=0.5)
    whole = toy_step(*(group for share in shares for group in share))
    norms = [alone.update(whole, step).norm for step in range(1, 5)]
    for found in ranks:
        assert found[f"{name} norms"] == pytest.approx(norms, rel=1e-5)
        # float32 sums in another order, rate 0.01
        assert close(found[name], alone.model.state_dict()) < 1e-6


def test_frozen_weights_stay_and_adapters_wait_for_their_step(ranks):
    start = ToyLlama().state_dict()
    changed = {
        name for name, value in ranks[0]["uneven"].items() if not torch.equal(value, start[name])
    }
    assert not [name for name in changed if "base" in name or "proj" in name]
    assert {f"layers.{i}.q_lora_a.weight" for i in range(3)} <= changed


def test_each_rank_holds_its_share_only(ranks):
    whole = sum(value.numel() for value in ToyLlama().parameters())
    held = [found["local"] for found in ranks]
    assert sum(held) == whole
    assert max(held) < 0.6 * whole


def test_a_bad_utterance_of_one_rank_changes_nothing_and_is_known_to_all(ranks):
    for found in ranks:
        assert [entry["not_finite"] for entry in found["bad"]] == [[], ["utt1"], ["utt1"]]
        assert found["bad"][1]["module"] == "adapter"
        assert close(found["after"], found["lopsided"]) == 0.0


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    run(folder)
    return folder


@pytest.mark.parametrize("phase", ["adapters", "all"])
def test_phases_with_averaging_end_as_in_one_process(ranks, alone, phase):
    paths = [
        folder / phase / "average-2.safetensors"
        for folder in (ranks[0]["folder"] / "undisturbed", alone)
    ]
    sharded, single = map(checkpoint.load, paths)
    # 14 steps of Adam at 0.01, whose first ones amplify rounding
    assert close(sharded, single) < 1e-4


def test_a_run_on_shards_that_was_interrupted_ends_with_the_same_bits(ranks):
    folder = ranks[0]["folder"]
    for phase in ("adapters", "all"):
        undisturbed, resumed = (folder / name / phase for name in ("undisturbed", "resumed"))
        name = "average-2.safetensors"
        assert close(checkpoint.load(undisturbed / name), checkpoint.load(resumed / name)) == 0.0
    events = [
        json.loads(line)
        for line in (folder / "resumed" / "adapters" / "log.jsonl").read_text().splitlines()
    ]
    assert [event["event"] for event in events].count("valid") == 2


def test_a_checkpoint_of_shards_is_that_of_one_process(ranks, alone):
    """Same names, shapes and types: it is decoded with, averaged and resumed on any number of
    ranks.
    """
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        shards, whole = (
            checkpoint.load(checkpoint.latest(folder) / name)
            for folder in (ranks[0]["folder"] / "undisturbed" / "all", alone / "all")
        )
        assert {key: (value.shape, value.dtype) for key, value in shards.items()} == {
            key: (value.shape, value.dtype) for key, value in whole.items()
        }
        assert "head.weight" not in shards  # tied to the table, saved once


def test_a_conformer_is_trained_on_shards_as_on_replicas(tmp_path):
    """The whole command, error rates included; the validation set has fewer batches on one rank
    than on the other.
    """
    write_corpus(tmp_path)
    changes = "model.encoder.dropout=0 trainer.epochs=2"
    metrics = {}
    for shared in ("ddp", "fsdp"):
        spawn(
            interruptions.run,
            WORLD,
            tmp_path,
            tmp_path / shared,
            None,
            f"{changes} trainer.parallel={shared}",
        )
        records = [
            json.loads(line) for line in (tmp_path / shared / "log.jsonl").read_text().splitlines()
        ]
        metrics[shared] = [record["valid/loss"] for record in records if record["event"] == "valid"]
        assert all("valid/cer" in record for record in records if record["event"] == "valid")
    assert len(metrics["fsdp"]) > 3
    assert metrics["fsdp"] == pytest.approx(metrics["ddp"], rel=1e-3)


@pytest.mark.parametrize("shared", ["fsdp", "hsdp"])
@pytest.mark.parametrize("setting", [{"precision": "fp16"}, {"compile": True}])
def test_what_shards_cannot_do_is_refused(setting, shared):
    with pytest.raises(ValueError, match=f"parallel: {shared}"):
        TrainerConfig(epochs=1, parallel=shared, **setting)


def test_shards_of_each_machine_train_as_one_process(tmp_path):
    """Four ranks on two machines: each machine holds the whole model, each rank half of it."""
    spawn(work_in_groups, 4, tmp_path)
    alone = toy_stepper(ToyLlama(), groups=GROUPS, lr=0.01, clip=0.5)
    whole = toy_step(*(group for share in SHARES for group in share * 2))
    norms = [alone.update(whole, step).norm for step in range(1, 5)]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(4)]
    for one in found:
        assert one["norms"] == pytest.approx(norms, rel=1e-5)
        assert close(one["weights"], alone.model.state_dict()) < 1e-6
    held, numel = [one["local"] for one in found], sum(p.numel() for p in ToyLlama().parameters())
    assert held[0] + held[1] == held[2] + held[3] == numel
    ends = [checkpoint.latest(tmp_path / name) for name in ("undisturbed", "resumed")]
    for name in (checkpoint.MODEL, checkpoint.OPTIMIZER):
        assert close(*(checkpoint.load(end / name) for end in ends)) == 0.0


def test_machines_with_different_numbers_of_ranks_are_refused(monkeypatch):
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 5)
    with pytest.raises(UserError, match="same number of processes on every machine"):
        Shards(2)._mesh(torch.device("cpu"))


def test_memory_that_shards_run_out_of_cannot_be_regained(monkeypatch):
    """A layer of a sharded model is computed by all ranks together: none can repeat it alone."""
    stepper = toy_stepper(Hungry(3))
    monkeypatch.setattr(stepper, "ranks", Unequal())
    monkeypatch.setattr(stepper, "_repeats", False)
    with pytest.raises(UserError, match="trainer.parallel shards the model"):
        stepper.update(toy_step([0, 1, 2, 3]), 1)


class Unequal(Replicas):
    lockstep = True
