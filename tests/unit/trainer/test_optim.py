"""Parameter groups, weight decay, freezing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asrtool.errors import UserError
from asrtool.trainer import optim
from asrtool.trainer.optim import AdamWConfig, GroupConfig
from asrtool.types import Trainable
from tests.toy_training import ToyModules


class Model(Trainable):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 3)
        self.encoder = nn.ModuleList([nn.Linear(3, 3), nn.LayerNorm(3)])
        self.position_bias = nn.Parameter(torch.zeros(2, 3))


def settings_of(
    model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        names[id(parameter)]: (group["lr_scale"], group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def test_biases_norms_and_embeddings_do_not_decay():
    model = Model()
    optimizer, _ = optim.build(AdamWConfig(lr=1.0, weight_decay=0.1), model, 10)
    decaying = {name for name, (_, decay) in settings_of(model, optimizer).items() if decay}
    assert decaying == {"encoder.0.weight"}


def test_the_first_matching_pattern_wins():
    groups = {
        "encoder.0.*": GroupConfig(lr_scale=0.1),
        "encoder.*": GroupConfig(lr_scale=0.5, weight_decay=0.3),
    }
    model = Model()
    optimizer, _ = optim.build(AdamWConfig(lr=1.0, groups=groups), model, 10)
    scales = {name: scale for name, (scale, _) in settings_of(model, optimizer).items()}
    assert scales["encoder.0.weight"] == 0.1
    assert scales["encoder.1.weight"] == 0.5
    assert scales["embedding.weight"] == 1.0


def test_a_group_may_decay_differently():
    model = Model()
    config = AdamWConfig(lr=1.0, groups={"encoder.*": GroupConfig(weight_decay=0.3)})
    optimizer, _ = optim.build(config, model, 10)
    assert settings_of(model, optimizer)["encoder.0.weight"] == (1.0, 0.3)
    assert settings_of(model, optimizer)["encoder.0.bias"] == (1.0, 0.0)


def test_a_pattern_that_matches_nothing_suggests_one_that_does():
    with pytest.raises(
        UserError, match=r"'encodr\.\*' matches no parameter; did you mean " r"'encoder\.\*'"
    ):
        optim.build(AdamWConfig(lr=1.0, groups={"encodr.*": GroupConfig()}), Model(), 10)


def test_a_pattern_hidden_by_one_above_it_is_refused():
    groups = {"encoder.*": GroupConfig(), "encoder.0.*": GroupConfig(freeze=True)}
    with pytest.raises(UserError, match=r"matches 'encoder\.0\.\*' is taken by an earlier pattern"):
        optim.build(AdamWConfig(lr=1.0, groups=groups), Model(), 10)


def test_a_pattern_that_is_not_required_may_decide_nothing():
    groups = {
        "encoder.*": GroupConfig(lr_scale=0.5),
        "encoder.0.*": GroupConfig(required=False),
        "absent.*": GroupConfig(freeze=True, required=False),
    }
    model = Model()
    found = optim.assign(AdamWConfig(lr=1.0, groups=groups), model)
    assert {group.lr_scale for name, group in found.items() if name.startswith("encoder")} == {0.5}
    assert not any(group.freeze for group in found.values())


def test_a_model_frozen_altogether_is_refused():
    with pytest.raises(UserError, match="nothing is left to train"):
        optim.build(AdamWConfig(lr=1.0, groups={"*": GroupConfig(freeze=True)}), Model(), 10)


def test_a_rate_of_zero_asks_for_freeze_instead():
    with pytest.raises(ValueError, match="freeze: true"):
        GroupConfig(lr_scale=0.0)


def test_freeze_until_lets_go_after_that_step():
    model = Model()
    config = AdamWConfig(lr=1.0, groups={"encoder.*": GroupConfig(freeze_until=5)})
    optim.freeze(config, model, 1)
    assert not model.encoder[0].weight.requires_grad
    assert not optim.freeze(config, model, 5)
    assert optim.unfreeze_steps(config) == [6]
    assert optim.freeze(config, model, 6)
    assert model.encoder[0].weight.requires_grad


def test_the_scheduled_rate_is_scaled_by_group():
    model = Model()
    config = AdamWConfig(lr=1.0, groups={"encoder.*": GroupConfig(lr_scale=0.5)})
    optimizer, _ = optim.build(config, model, 10)
    optim.set_rate(optimizer, 0.2)
    rates = {group["lr_scale"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {1.0: 0.2, 0.5: 0.1}


def test_what_a_model_holds_is_frozen_whatever_the_groups_say():
    model = ToyModules({"base": torch.nn.Linear(2, 2), "added": torch.nn.Linear(2, 2)})
    model.frozen = frozenset({"base.weight", "base.bias"})
    chosen = optim.assign(
        optim.AdamWConfig(lr=1.0, groups={"base.*": optim.GroupConfig(lr_scale=0.1)}), model
    )
    assert {name for name, group in chosen.items() if group.freeze} == model.frozen
    frozen = optim.AdamWConfig(lr=1.0, groups={"added.*": optim.GroupConfig(freeze=True)})
    with pytest.raises(UserError, match="nothing is left to train"):
        optim.assign(frozen, model)
