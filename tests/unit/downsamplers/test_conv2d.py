from __future__ import annotations

import pytest
import torch

from asrtool.downsamplers import Conv2d, Conv2dConfig
from asrtool.types import Padded


def build(**options) -> Conv2d:
    torch.manual_seed(0)
    return Conv2d(Conv2dConfig(channels=4, **options), dim_in=9, dim_out=6, vocab_size=5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("factor", [2, 4, 6, 8])
def test_lengths_are_divided_and_rounded_up(factor, causal):
    lengths = torch.tensor([1, 2, 7, 8, 9, 24, 25])
    output = build(factor=factor, causal=causal)(Padded(torch.randn(7, 25, 9), lengths))
    assert output.frames.lengths.tolist() == [-(-length // factor) for length in lengths.tolist()]
    assert output.frames.data.shape == (7, -(-25 // factor), 6)


@pytest.mark.parametrize("factor", [2, 4, 6, 8])
def test_a_causal_output_sees_inputs_up_to_its_own_place(factor):
    stem, x, lengths = build(factor=factor, causal=True), torch.randn(1, 40, 9), torch.tensor([40])
    changed = x.clone()
    changed[:, 2 * factor + 1 :] += 1
    before, after = (stem(Padded(data, lengths)).frames.data for data in (x, changed))
    assert torch.equal(before[:, :3], after[:, :3]) and not torch.equal(before[:, 3], after[:, 3])


def test_between_layers_it_keeps_the_place_of_every_second_frame():
    positions = torch.tensor([[0, 1, 5, 6, 7]])
    output = build(factor=2)(Padded(torch.randn(1, 5, 9), torch.tensor([5])), positions)
    assert output.positions.tolist() == [[0, 5, 7]]


def test_another_factor_is_refused():
    with pytest.raises(ValueError, match="factor 5 is not one of 2, 4, 6, 8"):
        Conv2dConfig(factor=5)
