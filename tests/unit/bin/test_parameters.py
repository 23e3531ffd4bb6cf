"""The table of parameters, from shapes alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from asrtool.bin import parameters
from asrtool.errors import UserError

CONF = Path(__file__).parents[3] / "egs" / "librispeech" / "conf"
pytestmark = pytest.mark.hf


def rows(text: str) -> dict[str, list[int]]:
    lines = [line.split() for line in text.splitlines()]
    return {
        line[0]: [int(n.replace(",", "")) for n in line[1:4]]
        for line in lines
        if len(line) > 3 and "," in line[1]
    }


def test_hubert_large_and_vicuna_have_the_papers_counts(capsys):
    parameters.main([str(CONF / "speech_llm" / "train_speech_llm.yaml"), "--phase", "lora"])
    text = capsys.readouterr().out
    found = rows(text)
    assert found["llm"] == [6_738_415_616 + 16_777_216, 16_777_216, 16_777_216]
    assert found["encoder"][1:] == [786_432, 786_432]
    assert found["adapter"] == [15_735_808, 15_735_808, 0]
    assert (
        "32 layers, width 4096" in text
        and "encoder: 24 layers" in text
        and "(paper: 0.65 M)" in text
    )


def test_twenty_layers_of_the_encoder_are_the_papers_number(capsys):
    change = ["--set", "model.encoder_tuning.layers=[4,23]"]
    parameters.main(
        [str(CONF / "speech_llm" / "train_speech_llm.yaml"), "--phase", "lora", *change]
    )
    assert rows(capsys.readouterr().out)["encoder"][1:] == [655_360, 655_360]


def test_the_adapters_phase_trains_the_adapter_alone(capsys):
    parameters.main([str(CONF / "speech_llm" / "train_speech_llm.yaml"), "--phase", "adapter"])
    found = rows(capsys.readouterr().out)
    assert found["total"][1] == found["adapter"][1] and "llm" in found


def test_another_model_and_a_phase_that_is_none(capsys):
    parameters.main([str(CONF / "train_mini.yaml"), "--vocab-size", "30"])
    text = capsys.readouterr().out
    assert "paper" not in text and rows(text)["total"][2] == 0
    with pytest.raises(UserError, match="has no phase 'x'; it has: train"):
        parameters.main([str(CONF / "train_mini.yaml"), "--phase", "x"])
