from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv1d, glu, silu

from asrtool.nn.convolution import ConvolutionModule, continue_from


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def test_the_module_is_the_papers_with_layer_norm():
    module, x = ConvolutionModule(8, 5), torch.randn(2, 9, 8)
    got, _ = module(x, torch.ones(2, 9, dtype=torch.bool))
    y = glu(module.in_proj(x)).transpose(1, 2)
    y = conv1d(y, module.depthwise.weight, module.depthwise.bias, padding=2, groups=8).transpose(
        1, 2
    )
    torch.testing.assert_close(got, module.out_proj(silu(module.norm(y))), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kernel", [1, 4, 5])
def test_the_causal_form_does_not_look_ahead(kernel):
    module = ConvolutionModule(8, kernel, causal=True)
    x, valid = torch.randn(1, 9, 8), torch.ones(1, 9, dtype=torch.bool)
    changed = x.clone()
    changed[:, 6:] += 1
    assert torch.equal(module(x, valid)[0][:, :6], module(changed, valid)[0][:, :6])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 9])
def test_every_frame_gives_one_frame(causal, frames):
    module = ConvolutionModule(8, 4, causal)
    assert module(torch.randn(2, frames, 8), torch.ones(2, frames, dtype=torch.bool))[0].shape == (
        2,
        frames,
        8,
    )


def test_padding_is_not_seen():
    module, x = ConvolutionModule(8, 5), torch.randn(2, 9, 8)
    valid = torch.arange(9) < torch.tensor([[9], [4]])
    alone, _ = module(x[1:, :4], valid[1:, :4])
    torch.testing.assert_close(module(x, valid)[0][1:, :4], alone, atol=1e-6, rtol=0)


def test_the_next_history_ends_where_each_row_ends():
    x = torch.tensor([[3, 4, 5], [3, 4, 0], [0, 0, 0]])[..., None]
    history = torch.tensor([[1, 2], [1, 2], [1, 2]])[..., None]
    joined, after = continue_from(x, history, torch.tensor([3, 2, 0]))
    assert joined[0, :, 0].tolist() == [1, 2, 3, 4, 5]
    assert after[..., 0].tolist() == [[4, 5], [3, 4], [1, 2]]
