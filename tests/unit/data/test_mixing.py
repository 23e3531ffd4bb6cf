"""Several training sets: shares of epochs, names, and a training that is interrupted."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from asrtool.bin import train
from asrtool.data.config import BatchConfig, DataConfig, SetConfig
from asrtool.data.mixing import MixedPlan, shares_of
from asrtool.errors import UserError
from asrtool.trainer import checkpoint
from asrtool.trainer.step import Stepper
from tests.toy_corpus import arguments, write_corpus, write_set
from tests.unit.data.plans import digest

PARTS = np.repeat([0, 1, 2], [40, 30, 7])


def mixed(*shares: float, seed: int = 0) -> MixedPlan:
    lengths = np.random.default_rng(0).uniform(1, 9, len(PARTS))
    return MixedPlan(lengths, BatchConfig(seconds=30), seed, PARTS, shares)


def test_an_epoch_reads_the_share_of_each_set_and_all_of_it_in_turn():
    plan, counts = mixed(1.0, 0.3, 1 / 7), np.zeros(len(PARTS), dtype=int)
    for epoch in range(20):
        members = plan.members(epoch)
        assert sorted(index for batch in plan.epoch(epoch) for index in batch) == members.tolist()
        assert plan.num_batches(epoch) == len(plan.epoch(epoch))
        for index, expected in ((0, 40), (1, 9), (2, 1)):
            assert abs((PARTS[members] == index).sum() - expected) <= 1
        counts[members] += 1
    for index, share in ((0, 1.0), (1, 0.3), (2, 1 / 7)):
        own = counts[index == PARTS]
        assert own.max() - own.min() <= 1 and abs(own.mean() - 20 * share) < 0.5


def test_a_mixed_plan_depends_on_seed_and_epoch_alone():
    assert mixed(1.0, 0.5, 0.5).epoch(7) == mixed(1.0, 0.5, 0.5).epoch(7)
    first, other = mixed(1.0, 0.5, 0.5), mixed(1.0, 0.5, 0.5, seed=1)
    assert first.members(0).tolist() != other.members(0).tolist()


def test_runs_of_earlier_versions_go_on_with_the_same_batches():
    durations = np.random.default_rng(0).gamma(4.0, 2.0, 3000).round(3) + 0.3
    sets = np.random.default_rng(1).integers(0, 3, 3000)
    config = BatchConfig(seconds=200, max_seconds_per_device=60)
    assert digest(MixedPlan(durations, config, 7, sets, [1.0, 0.3, 1 / 7])) == "9d1a2fd495145c90"


def test_shares_are_relative_to_the_largest():
    hours = {"a": 100.0, "b": 10.0}
    assert shares_of(hours, {"a": 1.0, "b": 4.0}, 1.0) == {"a": 0.25, "b": 1.0}
    even = shares_of(hours, {"a": 1.0, "b": 1.0}, 1e9)  # the same hours of both
    assert even["a"] * 100 == pytest.approx(even["b"] * 10)
    half = shares_of(hours, {"a": 1.0, "b": 1.0}, 2.0)  # hours read go with the root of hours
    assert (half["a"] * 100) / (half["b"] * 10) == pytest.approx(10**0.5)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_corpus(root)
    write_set(root / "more", 40, seed=3)
    for path in (root / "more").iterdir():  # other ids
        if path.suffix not in (".ark", ".json"):
            path.write_text(path.read_text().replace("u0", "more0"))
    return root


def sets(*parts: str) -> list[str]:
    return ["--set", shlex.join([f"data.sets=[{', '.join(parts)}]", "trainer.epochs=4"])]


TRAIN, MORE = "{set: train}", "{set: more, weight: 0.4}"


def test_a_training_reads_all_sets_and_goes_on_where_it_was(data, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train.main(arguments(data, whole, *sets(TRAIN, MORE)))
    shown = capsys.readouterr().err
    assert "an epoch reads 40.0 %" in shown and "of more" in shown
    update = Stepper.update

    def killed(self, group, step, *more):
        if group.epoch == 2 and group.index == 1:
            raise ZeroDivisionError
        return update(self, group, step, *more)

    monkeypatch.setattr(Stepper, "update", killed)
    with pytest.raises(ZeroDivisionError):
        train.main(arguments(data, cut, *sets(TRAIN, MORE)))
    monkeypatch.undo()
    train.main(arguments(data, cut, *sets(TRAIN, MORE)))
    first, second = (
        checkpoint.load(next((exp / "train").glob("average-*.safetensors"))) for exp in (whole, cut)
    )
    assert all((first[name] == second[name]).all() for name in first)


def test_the_training_set_must_be_among_them_and_ids_are_unique(data, tmp_path):
    with pytest.raises(UserError, match="data.sets: more: the training set train is not among"):
        train.main(arguments(data, tmp_path / "a", *sets(MORE)))
    shutil.copytree(data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/more")
    shutil.copytree(data / "train", tmp_path / "data/more")
    with pytest.raises(UserError, match="utterance u000 is in train and in more; give the ids"):
        train.main(arguments(tmp_path / "data", tmp_path / "b", *sets(TRAIN, MORE)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": (SetConfig(set="a"), SetConfig(set="a"))}, "each set is named once"),
        ({"sets": (SetConfig(set="a", weight=0.0),)}, "a weight is a number above 0"),
        ({"temperature": 2.0}, "weights several `sets`"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(batch=BatchConfig(seconds=10), **changes)
