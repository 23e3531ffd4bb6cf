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
    # causal: the last tap is at the last frame of the group
    left = kernel.shape[1] - factor if module.causal else kernel.shape[1] // 2
    for at in range(0, len(x), factor):
        total = convolution.depthwise.bias.clone()
        for tap in range(kernel.shape[1]):
            if 0 <= at - left + tap < len(x):
                total = total + kernel[:, tap] * gated[at - left + tap]
        mean = x[at : at + factor].mean(0)
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


def test_causal_output_sees_nothing_later_than_its_own_frames():
    module, x = build(causal=True, kernel=3), torch.randn(1, 12, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[:, 6:] += 1
    before, after = (module(Padded(one, torch.tensor([12]))).frames.data for one in (x, changed))
    assert torch.equal(before[:, :3], after[:, :3])  # frames 0-1, 2-3, 4-5
    assert not torch.allclose(before[:, 3], after[:, 3])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
@pytest.mark.parametrize("length", [1, 2, 3, 8, 9])
def test_the_last_frame_counts_at_any_length(causal, kernel, length):
    module = build(causal=causal, kernel=kernel)
    x = torch.randn(1, length, DIM, dtype=torch.float64)
    changed = x.clone()
    changed[:, -1] += torch.randn(DIM)
    before, after = (
        module(Padded(one, torch.tensor([length]))).frames.data for one in (x, changed)
    )
    assert not torch.allclose(before[:, -1], after[:, -1])


@pytest.mark.parametrize(("factor", "kernel"), [(2, 15), (2, 1), (3, 2), (3, 7)])
@pytest.mark.parametrize("length", [1, 2, 5, 6, 11, 12])
@torch.inference_mode()
def test_piece_by_piece_equals_the_whole_at_even_and_odd_lengths(factor, kernel, length):
    module = build(causal=True, factor=factor, kernel=kernel)
    inputs = Padded.stack([torch.randn(n, DIM, dtype=torch.float64) for n in (length, 7)])
    whole = module(inputs)
    cache, found = module.init_cache(2), [[], []]
    for start in range(0, max(length, 7), factor):
        piece = Padded.stack([row[start : start + factor] for row in inputs.unpad()])
        output, cache = module.forward_chunk(piece, None, cache)
        for row, frames in enumerate(output.frames.unpad()):
            found[row].append(frames)
    for pieces, expected in zip(found, whole.frames.unpad(), strict=True):
        torch.testing.assert_close(torch.cat(pieces), expected, atol=1e-12, rtol=0)


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
