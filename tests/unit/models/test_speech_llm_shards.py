"""A speech LLM in shards (FSDP2) on two processes over gloo, against one process."""

from __future__ import annotations

import pytest
import torch

from asrtool.trainer import checkpoint
from tests import toy_llm
from tests.toy_llm_ranks import steps, work
from tests.toy_ranks import spawn

pytestmark = [pytest.mark.hf, pytest.mark.slow]


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_steps_on_shards_are_those_of_one_process(tmp_path, precision):
    llm = toy_llm.save_llm(tmp_path / "llm")
    spawn(work, 2, tmp_path, llm, precision)
    stepper, norms = steps(llm, precision, "ddp", [[0, 1, 2, 3]])
    alone = checkpoint.model_tensors(stepper.model)
    held = []
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        held.append(found["local"])
        assert found["norms"][0] == pytest.approx(
            norms[0], rel=1e-5 if precision == "float32" else 1e-2
        )
        assert set(found["tensors"]) == set(alone)
        assert not any("embed_tokens" in name for name in alone)
        # bf16 rounds sums of other batches else
        for name, value in alone.items() if precision == "float32" else ():
            torch.testing.assert_close(
                found["tensors"][name], value.detach(), atol=1e-5, rtol=1e-5, msg=name
            )
    whole = sum(value.numel() for value in stepper.model.parameters())
    assert sum(held) == whole and max(held) < 0.6 * whole
