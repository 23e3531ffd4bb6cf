from __future__ import annotations

import pytest
import torch

from asrtool.downsamplers import Uma, UmaConfig
from asrtool.downsamplers.uma import segment_starts
from asrtool.types import Padded

DIM = 4


def weighing(weights: list[list[float]], generator: torch.Generator) -> tuple[Uma, Padded]:
    """A downsampler in float64 and frames to which it gives these weights."""
    downsampler = Uma(UmaConfig(), dim_in=DIM, dim_out=DIM, vocab_size=3).double()
    with torch.no_grad():
        downsampler.weight.weight.zero_()[0, 0] = 1.0
        downsampler.weight.bias.zero_()
    rows = []
    for row in weights:
        frames = torch.randn(len(row), DIM, generator=generator, dtype=torch.float64)
        frames[:, 0] = torch.tensor(row, dtype=torch.float64).logit()
        rows.append(frames)
    return downsampler, Padded.stack(rows)


@pytest.mark.parametrize(
    ("alpha", "starts"),
    [
        ([0.1, 0.5, 0.2, 0.6, 0.3], [0, 2]),  # one valley
        ([0.5, 0.2, 0.1, 0.4, 0.1, 0.1, 0.3], [0, 2, 5]),  # of a flat valley, its last frame
        ([0.5, 0.5, 0.5], [0]),
        ([0.9, 0.5, 0.1], [0]),  # falling to the end: no valley
        ([0.1, 0.5, 0.9], [0]),
        ([0.3], [0]),
    ],
)
def test_segments_start_at_valleys(alpha, starts):
    garbage = [0.0, 1.0, 0.0]  # behind the end
    valid = torch.tensor([[True] * len(alpha) + [False] * len(garbage)])
    found = segment_starts(torch.tensor([alpha + garbage]), valid)
    assert found[0].nonzero()[:, 0].tolist() == starts


def test_segments_in_bf16_are_those_of_float32():
    torch.manual_seed(0)
    downsampler = Uma(UmaConfig(), dim_in=DIM, dim_out=DIM, vocab_size=3)
    # weights so close to each other that bf16 would make neighbours equal
    inputs = Padded.stack(list(torch.randn(4, 200, DIM) * 0.01))
    expected = downsampler(inputs).taps["key_frames"].data
    with torch.autocast("cpu", torch.bfloat16):
        found = downsampler(inputs).taps["key_frames"].data
    assert expected.sum() > 100 and torch.equal(found, expected)


def test_a_segment_is_the_weighted_mean_from_valley_to_valley():
    generator = torch.Generator().manual_seed(0)
    lengths = (40, 1, 17, 2)
    weights = [
        torch.rand(length, generator=generator).mul(0.9).add(0.05).tolist() for length in lengths
    ]
    downsampler, inputs = weighing(weights, generator)
    output = downsampler(inputs)
    for row, (alpha, x) in enumerate(zip(weights, inputs.unpad(), strict=True)):
        valleys = [0] + [
            t for t in range(1, len(alpha) - 1) if alpha[t - 1] >= alpha[t] < alpha[t + 1]
        ]
        ends = [*valleys[1:], len(alpha) - 1]
        expected = [
            sum(alpha[t] * x[t] for t in range(start, end + 1)) / sum(alpha[start : end + 1])
            for start, end in zip(valleys, ends, strict=True)
        ]
        count = len(valleys)
        assert output.frames.lengths[row] == count
        assert output.positions[row, :count].tolist() == valleys
        # the weights are computed in float32
        torch.testing.assert_close(
            output.frames.data[row, :count], torch.stack(expected), atol=1e-6, rtol=0
        )
    assert not output.frames.data[1, 1:].any()


def test_the_gradient_reaches_the_weights():
    generator = torch.Generator().manual_seed(1)
    downsampler, inputs = weighing([[0.1, 0.6, 0.2, 0.7, 0.3]], generator)
    output = downsampler(Padded(inputs.data.requires_grad_(), inputs.lengths))
    output.frames.data.square().sum().backward()
    assert downsampler.weight.weight.grad.abs().sum() > 0
    assert (inputs.data.grad.abs().sum(2) > 0).all()
