from __future__ import annotations

import platform

import pytest
import torch

from asrtool.errors import UserError
from asrtool.trainer.precision import choose, multiplies_bf16
from tests.toy_training import toy_trainer

CPU = torch.device("cpu")


@pytest.mark.parametrize(("has", "chosen"), [(True, "bf16"), (False, "float32")])
def test_auto_is_bf16_where_the_device_multiplies_it(monkeypatch, has: bool, chosen: str) -> None:
    monkeypatch.setattr("asrtool.trainer.precision.multiplies_bf16", lambda device: has)
    assert choose("auto", CPU) == chosen
    assert choose("float32", CPU) == "float32"
    assert choose("bf16", CPU) == "bf16"  # slow, and asked for


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        choose("fp16", CPU)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="instructions of x86")
def test_avx512_alone_does_not_multiply_bf16() -> None:
    with open("/proc/cpuinfo", encoding="ascii") as info:
        flags = set(next(line for line in info if line.startswith("flags")).split())
    assert multiplies_bf16(CPU) == bool(flags & {"avx512_bf16", "amx_bf16"})


def test_a_training_says_what_auto_is_here(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("asrtool.trainer.precision.multiplies_bf16", lambda device: False)
    trainer = toy_trainer(tmp_path, precision="auto", steps=1)
    with caplog.at_level("INFO"):
        trainer.run()
    assert "trainer.precision: auto is float32 on this device" in caplog.text


def test_bf16_without_instructions_for_it_is_told(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr("asrtool.trainer.trainer.multiplies_bf16", lambda device: False)
    toy_trainer(tmp_path, precision="bf16", steps=1).run()
    assert "no instructions for bf16" in caplog.text
