"""What the adapters between encoder and LLM compute, beside the laws of all downsamplers."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import relu

from asrtool.downsamplers import DOWNSAMPLERS
from asrtool.types import Padded

ADAPTERS = ("conv1d_mlp", "dws_mlp", "conv1d_transformer")


def build(name: str, dim_in: int = 16, dim_out: int = 24, **settings):
    torch.manual_seed(0)
    config = DOWNSAMPLERS.config_type(name)(**settings)
    return DOWNSAMPLERS.build(config, dim_in=dim_in, dim_out=dim_out, vocab_size=5).eval()


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("rate", [4, 5, 8])
def test_every_rate_frames_give_one_row_and_a_rest_gives_one_more(name, rate):
    frames = Padded(torch.randn(4, 40, 16), torch.tensor([40, 1, rate, rate + 1]))
    output = build(name, rate=rate)(frames)
    assert output.frames.lengths.tolist() == [-(-40 // rate), 1, 1, 2]
    assert output.frames.data.shape == (4, -(-40 // rate), 24)
    assert output.positions[0].tolist() == list(range(0, 40, rate))


def test_conv1d_mlp_is_the_published_shape():
    with torch.device("meta"):
        adapter = build("conv1d_mlp", dim_in=1024, dim_out=4096)
        stacked = build("dws_mlp", dim_in=1024, dim_out=4096)
    # 15.7 M
    assert (
        sum(p.numel() for p in adapter.parameters())
        == 5 * 1024**2 + 1024 + 1025 * 2048 + 2049 * 4096
    )
    assert sum(p.numel() for p in stacked.parameters()) == 5121 * 2048 + 2049 * 4096  # 18.9 M


def test_a_row_of_conv1d_mlp_is_the_formula():
    adapter, x = build("conv1d_mlp", rate=4, kernel=6), torch.randn(1, 9, 16)
    row = adapter(Padded(x, torch.tensor([9]))).frames.data[0, 2]
    window = torch.zeros(6, 16)
    window[:1] = x[0, 8:]
    conv = adapter.blocks.convolution
    z = relu(torch.einsum("oik,ki->o", conv.weight, window) + conv.bias)
    torch.testing.assert_close(row, adapter.out_proj(relu(adapter.up_proj(z))))


def test_a_row_of_dws_mlp_is_the_formula():
    adapter, x = build("dws_mlp", rate=4), torch.randn(1, 6, 16)
    row = adapter(Padded(x, torch.tensor([6]))).frames.data[0, 1]
    stacked = torch.cat([x[0, 4], x[0, 5], torch.zeros(32)])
    torch.testing.assert_close(row, adapter.out_proj(relu(adapter.up_proj(stacked))))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_rate_below_1_and_a_kernel_with_gaps_are_errors(name):
    kind = DOWNSAMPLERS.config_type(name)
    with pytest.raises(ValueError, match="rate must be at least 1 frame"):
        kind(rate=0)
    if name != "dws_mlp":
        with pytest.raises(ValueError, match="kernel 3 must be at least rate 4"):
            kind(rate=4, kernel=3)


@pytest.mark.parametrize("name", ADAPTERS)
def test_double_precision_stays_double(name):
    frames = Padded(torch.randn(2, 11, 16, dtype=torch.float64), torch.tensor([11, 3]))
    assert build(name).double()(frames).frames.data.dtype == torch.float64
