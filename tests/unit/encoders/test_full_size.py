"""The encoders of the recipes at full size: streaming equals the whole to 1e-5, with random
weights.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asrtool.experiment import load_phases
from asrtool.model_folder import build_model
from asrtool.types import Padded
from tests.unit.encoders.test_qifusion import streamed

CONF = Path(__file__).parents[3] / "egs" / "kespeech" / "conf"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chunk", "left_chunks"), [(1, 4), (2, 2), (4, 1), (8, None), (16, 4), (16, None)]
)
@pytest.mark.parametrize("name", ["u2pp/train_u2pp_conformer", "qifusion/train_qifusion"])
@torch.inference_mode()
def test_streaming_gives_what_the_chunk_mask_gives(name, chunk, left_chunks):
    (phase,) = load_phases(CONF / f"{name}.yaml").values()
    torch.manual_seed(0)
    encoder = build_model(phase, 100).encoder.eval()
    encoder.left_chunks = left_chunks
    inputs = Padded.stack([torch.randn(length, 80) for length in (700, 5, 333)])
    whole = encoder(inputs, chunk=chunk)
    for row, found in enumerate(streamed(encoder, inputs, chunk, seed=chunk, longest=97)):
        for part, frames in {"frames": whole.frames, **whole.taps}.items():
            torch.testing.assert_close(
                found[part], frames.unpad()[row], atol=1e-5, rtol=0, msg=f"row {row}: {part}"
            )
