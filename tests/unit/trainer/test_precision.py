from __future__ import annotations

import contextlib
import platform

import pytest
import torch

from asrtool.errors import UserError
from asrtool.trainer.precision import choose, multiplies_bf16, tf32
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
    monkeypatch.setattr("asrtool.trainer.precision.multiplies_bf16", lambda device: False)
    toy_trainer(tmp_path, precision="bf16", steps=1).run()
    assert "no instructions for bf16" in caplog.text


def products() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("allowed", "inside"), [(True, ("high", True)), (False, ("highest", False))]
)
def test_a_gpu_multiplies_in_tf32_during_the_training_alone(allowed, inside) -> None:
    before = products()
    with pytest.raises(KeyError), tf32(allowed, torch.device("cuda", 0)):
        assert products() == inside
        raise KeyError
    assert products() == before


def test_the_products_of_a_cpu_stay_as_they_are(tmp_path) -> None:
    before = products()
    with tf32(True, CPU):
        assert products() == before


@pytest.mark.parametrize("allowed", [True, False])
def test_a_training_asks_for_it(tmp_path, monkeypatch, allowed) -> None:
    asked = []

    def spy(*given: object) -> contextlib.AbstractContextManager:
        asked.append(given)
        return contextlib.nullcontext()

    monkeypatch.setattr("asrtool.trainer.trainer.tf32", spy)
    toy_trainer(tmp_path, tf32=allowed, steps=1).run()
    assert asked == [(allowed, CPU)]
