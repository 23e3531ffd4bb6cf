"""The baselines of Qifusion-Net: Conformers that differ only in the accent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from asrtool.bin import parameters
from asrtool.experiment import TrainConfig, load_phases
from asrtool.model_folder import build_model

EGS = Path(__file__).parents[2] / "egs"
RECIPES = pytest.mark.parametrize("recipe", ["kespeech", "magicdata", "fsdd"])
OWN = {"accent", "ffn_dim"}  # of the encoder


def phase(recipe: str, name: str) -> TrainConfig:
    return load_phases(EGS / recipe / "conf" / "qifusion" / f"{name}.yaml")["train"]


@RECIPES
def test_it_has_the_same_heads_kernel_frame_rate_and_training(recipe):
    ours, baseline = phase(recipe, "train_qifusion"), phase(recipe, "train_qifusion_baseline")
    encoder = vars(ours.model.encoder)
    assert {
        name: value for name, value in vars(baseline.model.encoder).items() if name not in OWN
    } == {name: value for name, value in encoder.items() if name not in OWN}
    assert (ours.data, ours.optim, ours.model.decoder) == (
        baseline.data,
        baseline.optim,
        baseline.model.decoder,
    )
    assert baseline.losses == {name: loss for name, loss in ours.losses.items() if name != "accent"}
    assert baseline.trainer.epochs == ours.trainer.epochs


@RECIPES
def test_it_has_as_many_parameters_within_one_percent(recipe, capsys):
    sizes = []
    for name in ("train_qifusion", "train_qifusion_baseline"):
        path = EGS / recipe / "conf" / "qifusion" / f"{name}.yaml"
        parameters.main([str(path), "--vocab-size", "5000"])
        (total,) = re.findall(r"^total +([0-9,]+) ", capsys.readouterr().out, re.MULTILINE)
        sizes.append(int(total.replace(",", "")))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)


def test_the_release_has_four_heads_and_the_last_six_layers():
    for name, layers in (
        ("train_qifusion", [5, 6, 7, 8, 9, 10, 11]),
        ("train_qifusion_released", [6, 7, 8, 9, 10, 11]),
    ):
        config = phase("kespeech", name)
        assert list(config.model.encoder.accent.layers) == layers
        with torch.device("meta"):
            encoder = build_model(config, 50).encoder
        assert encoder.accent_fusion.attention.num_heads == 4
        assert encoder.layers[0].attention.num_heads == 8
