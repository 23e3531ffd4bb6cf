"""Feed-forwards that leave padding out give what they give over all frames."""

from __future__ import annotations

import pytest
import torch

from asrtool.nn.attention import RotarySelfAttention
from asrtool.nn.conformer import ROWS, ConformerLayer, Scope, packed_rows
from asrtool.nn.convolution import ConvolutionModule
from asrtool.nn.masks import attention_mask
from asrtool.nn.positions import rotations


def mask(*lengths: int) -> torch.Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def test_packed_rows_hold_all_valid_frames_and_recur() -> None:
    valid = mask(200, 100, 30)
    rows = packed_rows(valid)
    assert len(rows) == 384 == 6 * ROWS
    assert rows[:330].tolist() == valid.flatten().nonzero().flatten().tolist()
    assert len(set(rows.tolist())) == 384
    assert len(packed_rows(mask(200, 95, 30))) == 384


@pytest.mark.parametrize("lengths", [(200, 200), (200, 195), (3, 1)])
def test_little_padding_is_computed(lengths: tuple[int, ...]) -> None:
    assert packed_rows(mask(*lengths)) is None


def test_packing_changes_no_valid_frame_and_no_gradient() -> None:
    torch.manual_seed(0)
    layer = ConformerLayer(8, 16, RotarySelfAttention(8, 2), ConvolutionModule(8, 3), dropout=0.0)
    valid = mask(200, 60)
    x = torch.randn(2, 200, 8)
    shared = (
        valid,
        attention_mask(valid),
        rotations(torch.arange(200).expand(2, -1), layer.attention.num_frequencies),
    )
    found = []
    for rows in (None, packed_rows(valid)):
        layer.zero_grad()
        y = layer(x, Scope(*shared, rows))[0][valid]
        y.square().sum().backward()
        found.append((y.detach(), [parameter.grad for parameter in layer.parameters()]))
    assert packed_rows(valid) is not None
    torch.testing.assert_close(found[0], found[1])


def test_nothing_is_packed_in_a_graph() -> None:
    class Rows(torch.nn.Module):
        def forward(self, valid: torch.Tensor) -> torch.Tensor:
            return valid if packed_rows(valid) is None else valid[:0]

    valid = mask(200, 60)
    assert packed_rows(valid) is not None
    assert torch.equal(torch.export.export(Rows(), (valid,)).module()(valid), valid)
