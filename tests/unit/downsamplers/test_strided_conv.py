"""The strided convolution against its formula, frame by frame."""

from __future__ import annotations

import pytest
import torch

from asrtool.downsamplers import DOWNSAMPLERS, StridedConvConfig
from asrtool.types import Padded

DIM = 8


def build(**options):
    torch.manual_seed(0)
    return (
        DOWNSAMPLERS.build(StridedConvConfig(**options), dim_in=DIM, dim_out=DIM, vocab_size=5)
        .double()
        .eval()
    )


def by_hand(module, x: torch.Tensor) -> torch.Tensor:
    """One utterance (T, D), one output frame at a time."""
    convolution, factor, rows = module.convolution, module.factor, []
    gated = torch.nn.functional.glu(convolution.in_proj(module.norm(x)))
    kernel = convolution.depthwise.weight[:, 0]  # (D, K)
    left = kernel.shape[1] - 1 if module.causal else kernel.shape[1] // 2
    for at in range(0, len(x), factor):
        total = convolution.depthwise.bias.clone()
        for tap in range(kernel.shape[1]):
            if 0 <= at - left + tap < len(x):
                total = total + kernel[:, tap] * gated[at - left + tap]
        first = max(0, at - factor + 1) if module.causal else at
        mean = x[first : at + 1 if module.causal else at + factor].mean(0)
        rows.append(mean + convolution.out_proj(torch.nn.functional.silu(convolution.norm(total))))
    return torch.stack(rows)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("factor", "kernel"), [(2, 5), (2, 1), (3, 4)])
def test_it_is_what_its_formula_says(causal, factor, kernel):
    module = build(causal=causal, factor=factor, kernel=kernel)
    inputs = Padded.stack([torch.randn(length, DIM, dtype=torch.float64) for length in (11, 1, 6)])
    output = module(inputs)
    assert output.frames.lengths.tolist() == [-(-length // factor) for length in (11, 1, 6)]
    for row, found in zip(inputs.unpad(), output.frames.unpad(), strict=True):
        torch.testing.assert_close(found, by_hand(module, row), atol=1e-12, rtol=0)


def test_causal_output_sees_nothing_later_than_its_own_frame():
    module, x = build(causal=True, kernel=3), torch.randn(1, 12, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[:, 5:] += 1
    before, after = (module(Padded(one, torch.tensor([12]))).frames.data for one in (x, changed))
    assert torch.equal(before[:, :3], after[:, :3])  # frames 0, 2, 4
    assert not torch.allclose(before[:, 3], after[:, 3])


def test_positions_are_those_of_the_frames_that_stay():
    positions = torch.arange(0, 20, 2)[None]
    assert build()(
        Padded(torch.randn(1, 10, DIM).double(), torch.tensor([10])), positions
    ).positions.tolist() == [[0, 4, 8, 12, 16]]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"factor": 1}, "factor must be at least 2"), ({"kernel": 0}, "at least 1 frame")],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StridedConvConfig(**options)
