"""The command: its lines, and what it refuses."""

from __future__ import annotations

import re
import shlex

import pytest
import torch

from asrtool.bin.fit import amount_of, main
from asrtool.errors import UserError
from tests.toy_corpus import write_corpus


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_corpus(root)
    return root


def options(data, *more: str) -> list[str]:
    paths = ["--train", str(data / "train"), "--vocab", str(data / "vocab")]
    return [str(data / "config.yaml"), *paths, *more]


def test_it_prints_what_to_set(data, capsys):
    main(options(data, "--memory", "1.7G"))
    out = capsys.readouterr().out
    assert "phase train: a step of one device, counted on the CPU" in out
    assert all(
        re.search(rf"^{name} .* [0-9.]+$", out, re.MULTILINE) for name in ("longest", "densest")
    )
    line = next(line for line in out.splitlines() if line.startswith("--set "))
    (given,) = shlex.split(line, comments=True)[1:]
    key, value = given.split("=")
    assert key == "data.batch.max_seconds_per_device"
    assert float(value) >= 1
    assert "1.7 GB, of which 10% stay free" in line


def test_layers_that_are_computed_again_leave_room_for_more(data, capsys):
    found = []
    for again in ("false", "true"):
        more = "data.batch.seconds=1e6 model.encoder.num_layers=4 model.encoder.dim=64"
        setting = f"trainer.activation_checkpointing={again} {more} model.encoder.ffn_dim=256"
        main(options(data, "--memory", "1.7G", "--set", setting))
        line = capsys.readouterr().out.splitlines()[-1]
        found.append(float(re.search(r"=([0-9.e+]+)", line)[1]))
    assert found[1] > 1.5 * found[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_its_memory_must_be_given(data):
    with pytest.raises(UserError, match="no GPU here: give the memory of one, as in --memory 80G"):
        main(options(data))


def test_an_unknown_phase_is_refused(data):
    with pytest.raises(UserError, match="no phase 'second'; it has: train"):
        main(options(data, "--memory", "2G", "--phase", "second"))


@pytest.mark.parametrize(
    ("text", "amount"), [("80G", 80e9), ("24 GB", 24e9), ("500m", 5e8), ("8e9", 8e9)]
)
def test_amounts(text, amount):
    assert amount_of(text) == amount


@pytest.mark.parametrize("wrong", [["--memory", "much"], ["--memory", "2G", "--margin", "1"]])
def test_what_cannot_be_meant_is_refused(data, wrong):
    with pytest.raises(SystemExit):
        main(options(data, *wrong))
