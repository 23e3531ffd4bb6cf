"""What only a GPU can show: half precision with its scaler, events as clock, memory, nccl."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from asrtool import distributed
from asrtool.errors import UserError
from asrtool.trainer.optim import AdamWConfig
from asrtool.trainer.step import Clock, Stepper
from tests import toy_conformer
from tests.toy_llama import ToyLlama
from tests.toy_ranks import free_port
from tests.toy_training import (
    ToyModel,
    difference,
    gradients,
    toy_objective,
    toy_step,
    toy_stepper,
    toy_trainer,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
NUMBERS = list(range(8))
GPU = torch.device("cuda", 0)


def stepper(
    precision: str = "float32", model: torch.nn.Module | None = None, shared: str = "ddp"
) -> Stepper:
    return Stepper(
        AdamWConfig(lr=0.1, clip=float("inf")),
        model or ToyModel(dropout=0.0),
        toy_objective(),
        planned=10,
        precision=precision,
        device=torch.device("cuda", 0),
        seed=0,
        shared=shared,
    )


@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-3), ("bf16", 0.1), ("fp16", 0.02)]
)
def test_a_step_has_the_gradient_of_the_cpu(precision, tolerance):
    if precision == "bf16" and not torch.cuda.is_bf16_supported(False):
        pytest.skip("this GPU computes no bf16")
    ours, exact = stepper(precision), toy_stepper()
    if precision == "fp16":
        ours.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**8)
    ours.update(toy_step(NUMBERS), 1)
    exact.update(toy_step(NUMBERS), 1)
    found = {name: value.cpu() for name, value in gradients(ours).items()}
    assert difference(gradients(exact), found) < tolerance


def test_the_scaler_lowers_its_scale_without_a_bad_batch():
    ours = stepper("fp16")
    ours.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    assert [ours.update(toy_step(NUMBERS), step).bad for step in (1, 2)] == [None, None]
    assert ours.scaler.get_scale() == 2.0**38


def test_a_run_is_resumed_with_its_scaler_and_logs_memory(tmp_path):
    whole = toy_trainer(
        tmp_path, epochs=2, log_every=1, precision="fp16", device=torch.device("cuda", 0)
    )
    assert whole.run() == 0
    again = toy_trainer(
        tmp_path, epochs=4, log_every=1, precision="fp16", device=torch.device("cuda", 0)
    )
    assert again.run() == 0
    assert again.stepper.scaler.get_scale() > 1
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert all(record["gpu_gb"] > 0 for record in records if record["event"] == "step")


def test_the_dry_run_tells_the_memory_and_a_lack_of_it_brings_advice():
    ours = stepper()
    assert " GB" in ours.dry_run(toy_step(NUMBERS).batches[0])
    ours.objective = lambda outputs, batch: torch.empty(1 << 50, device="cuda")
    with pytest.raises(
        UserError, match="does not fit into memory: lower data.batch.max_seconds_per_device"
    ):
        ours.dry_run(toy_step(NUMBERS).batches[0])


def test_the_clock_counts_what_the_gpu_does():
    clock = Clock(torch.device("cuda", 0))
    big = torch.randn(4096, 4096, device="cuda")
    clock.start()
    for _ in range(20):
        big = big @ big / 64
    clock.lap("forward")
    clock.lap("wait")
    assert "wait" not in clock.seconds()  # it does not wait for the GPU
    torch.cuda.synchronize()
    seconds = clock.seconds()
    assert seconds["forward"] > 100 * seconds["wait"] >= 0


def waits(run: Callable[[], object]) -> int:
    """How often the host waits for the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in found)


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_step_waits_for_the_gpu_once(precision):
    ours, group = stepper(precision), toy_step(NUMBERS[:3], NUMBERS[3:])
    group = replace(group, batches=[batch.pin_memory() for batch in group.batches])
    ours.update(group, 1)
    assert waits(lambda: ours.update(group, 2)) <= 1


def test_a_step_of_a_conformer_waits_once_beside_the_copies_of_torchs_ctc():
    ours, group = toy_conformer.stepper(GPU), toy_conformer.step([[[0, 1], [2, 3]]])
    group = replace(group, batches=[batch.pin_memory() for batch in group.batches])
    ours.update(group, 1)
    log_probs = torch.randn(20, 2, 5, device="cuda").log_softmax(-1).requires_grad_()
    targets = torch.ones(2, 3, dtype=torch.int64, device="cuda")
    lengths = torch.tensor([20, 18]), torch.tensor([3, 2])

    def ctc() -> None:
        torch.nn.functional.ctc_loss(log_probs, targets, *lengths).backward()

    own = waits(ctc)
    assert waits(lambda: ours.update(group, 2)) <= 1 + own * len(group.batches)


@pytest.mark.parametrize("shared", ["ddp", "fsdp"])
def test_one_rank_over_nccl_has_the_gradient_of_one_process(shared, monkeypatch):
    for name, value in {
        "RANK": 0,
        "LOCAL_RANK": 0,
        "WORLD_SIZE": 1,
        "MASTER_PORT": free_port(),
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    alone = stepper(model=ToyLlama())
    alone.update(toy_step(NUMBERS), 1)
    torch.distributed.init_process_group("nccl")
    try:
        assert distributed.largest(3) == 3
        ours = stepper(model=ToyLlama(), shared=shared)
        ours.dry_run(toy_step(NUMBERS).batches[0])
        ours.update(toy_step(NUMBERS[:3], NUMBERS[3:]), 1)
        for mine, other in zip(ours.model.parameters(), alone.model.parameters(), strict=True):
            whole = mine.full_tensor() if shared == "fsdp" else mine
            torch.testing.assert_close(whole, other, rtol=1e-3, atol=1e-4)
    finally:
        torch.distributed.destroy_process_group()
