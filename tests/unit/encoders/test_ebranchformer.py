"""The E-Branchformer's layer against its equations, and what it adds to the Conformer's caches."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from asrtool.downsamplers import Conv2dConfig, KeyframeConfig
from asrtool.encoders import ENCODERS, ChunkConfig, EBranchformer, EBranchformerConfig
from asrtool.nn.conformer import Scope, packed_rows
from asrtool.nn.ebranchformer import EBranchformerLayer, GatingMlp
from asrtool.nn.masks import attention_mask, valid_mask
from asrtool.nn.positions import rotations
from asrtool.types import Padded
from tests.toy_conformer import double_precision
from tests.unit.encoders.test_qifusion import streamed

SIZE = {"num_layers": 2, "dim": 16, "num_heads": 2, "ffn_dim": 32, "cgmlp_dim": 24}
SIZE |= {"kernel": 5, "merge_kernel": 3, "dropout": 0.0}
CAUSAL = {"causal": True, "chunk": ChunkConfig()}
CAUSAL |= {"downsamplers": {0: Conv2dConfig(channels=4, causal=True)}}


def build(**options) -> EBranchformer:
    torch.manual_seed(0)
    options = {**SIZE, "downsamplers": {0: Conv2dConfig(channels=4)}, **options}
    encoder = ENCODERS.build(
        EBranchformerConfig(**options), input_dim=8, vocab_size=5, frame_shift=0.01
    ).eval()
    for layer in encoder.layers:  # as after training: gates near 1 would hide an error
        torch.nn.init.normal_(layer.convolution.depthwise.weight)
    return encoder


def batch(*lengths: int) -> Padded:
    generator = torch.Generator().manual_seed(1)
    return Padded.stack([torch.randn(length, 8, generator=generator) for length in lengths])


def norm(x: Tensor, by: torch.nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + by.eps).sqrt()
    return centred / scale * by.weight + by.bias


def depthwise(x: Tensor, by: torch.nn.Conv1d, causal: bool) -> Tensor:
    """x (S, C): y[s] = bias + sum_k weight[k] x[s + k - before], zeros outside."""
    kernel = by.weight.shape[2]
    before = kernel - 1 if causal else kernel // 2
    at = torch.arange(len(x))[:, None] + torch.arange(kernel) - before  # (S, kernel)
    inside = ((at >= 0) & (at < len(x)))[..., None]
    frames = x[at.clamp(0, len(x) - 1)] * inside  # (S, kernel, C)
    return torch.einsum("skc,ck->sc", frames, by.weight[:, 0]) + by.bias


def attention(x: Tensor, by: torch.nn.Module) -> Tensor:
    """x (S, D): softmax of the products of queries and keys that are turned by their positions."""
    query, key, value = (
        linear(x).unflatten(-1, (by.num_heads, -1)).transpose(0, 1)  # (H, S, D / H)
        for linear in (by.q_proj, by.k_proj, by.v_proj)
    )
    turns = rotations(torch.arange(len(x))[None], by.num_frequencies)[0]  # (1, S, n)
    query, key = (
        torch.view_as_real(
            torch.view_as_complex(one.unflatten(-1, (-1, 2)).contiguous()) * turns
        ).flatten(-2)
        for one in (query, key)
    )
    scores = torch.einsum("hqd,hkd->hqk", query, key) / query.shape[-1] ** 0.5
    heads = torch.einsum("hqk,hkd->qhd", scores.softmax(-1), value)
    return by.o_proj(heads.flatten(1))


def half_step(x: Tensor, ffn: torch.nn.Module, before: torch.nn.LayerNorm) -> Tensor:
    return x + ffn.down_proj(silu(ffn.up_proj(norm(x, before)))) / 2


def equations(layer: EBranchformerLayer, x: Tensor, causal: bool) -> Tensor:
    """The layer, for one utterance x (S, D)."""
    x = half_step(x, layer.first, layer.first_norm)
    y_global = attention(norm(x, layer.attention_norm), layer.attention)
    mlp = layer.convolution
    value, gate = gelu(mlp.in_proj(norm(x, layer.convolution_norm))).tensor_split(2, dim=-1)
    y_local = mlp.out_proj(value * depthwise(norm(gate, mlp.norm), mlp.depthwise, causal))
    both = torch.cat([y_global, y_local], dim=-1)
    x = x + layer.merge.out_proj(both + depthwise(both, layer.merge.depthwise, causal))
    return norm(half_step(x, layer.second, layer.second_norm), layer.final_norm)


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_a_layer_is_its_equations_alone_and_beside_a_longer_utterance(causal):
    with double_precision():
        layer = build(**(CAUSAL if causal else {})).double().layers[0]
        lengths = torch.tensor([150, 9])
        x, valid = torch.randn(2, 150, 16), valid_mask(lengths, 150)
        turns = rotations(torch.arange(150).expand(2, -1), layer.attention.num_frequencies)
        rows = packed_rows(valid)
        assert rows is not None
        y, _ = layer(x, Scope(valid, attention_mask(valid), turns, rows))
        for row, length in enumerate(lengths.tolist()):
            expected = equations(layer, x[row, :length], causal)
            torch.testing.assert_close(y[row, :length], expected, atol=1e-10, rtol=0)


def test_initially_the_gate_is_one():
    torch.manual_seed(0)
    mlp, x = GatingMlp(16, 24, 5, causal=False, dropout=0.0), torch.randn(2, 9, 16)
    value, _ = gelu(mlp.in_proj(x)).chunk(2, dim=-1)
    found, _ = mlp(x, torch.ones(2, 9, dtype=torch.bool))
    torch.testing.assert_close(found, mlp.out_proj(value), atol=1e-4, rtol=0)
    assert mlp.depthwise.weight.std() > 1e-7  # but weights differ, so that they learn differently


@pytest.mark.parametrize("left_chunks", [None, 0, 2])
@pytest.mark.parametrize("chunk", [1, 3, 8])
@torch.no_grad()
def test_key_frames_stream_and_both_convolutions_see_the_kept_frames_alone(chunk, left_chunks):
    stems = {0: Conv2dConfig(channels=4, causal=True), 2: KeyframeConfig(causal=True)}
    encoder = build(num_layers=4, **{**CAUSAL, "downsamplers": stems})
    encoder.left_chunks = left_chunks
    encoder.downsamplers["2"].head.weight.mul_(10.0)  # many different tokens, blanks among them
    inputs = batch(141, 1, 64, 98)
    whole = encoder(inputs, chunk=chunk)
    assert (whole.frames.lengths[0] < whole.taps["inter_ctc"].lengths[0]).item()
    for row, found in enumerate(streamed(encoder, inputs, chunk, seed=chunk)):
        torch.testing.assert_close(
            found["frames"], whole.frames.unpad()[row], atol=1e-5, rtol=0, msg=f"row {row}"
        )


@torch.no_grad()
def test_a_gap_between_positions_is_no_gap_for_the_convolutions():
    """Behind key frames, attention knows how far frames are apart; the convolutions do not."""
    layer = build().layers[0]
    layer.attention.o_proj.weight.zero_()
    x, valid = torch.randn(1, 12, 16), torch.ones(1, 12, dtype=torch.bool)
    found = []
    for positions in (torch.arange(12), torch.arange(12).square()):
        turns = rotations(positions[None], layer.attention.num_frequencies)
        found.append(layer(x, Scope(valid, attention_mask(valid), turns))[0])
    assert torch.equal(*found)


def test_a_dropped_layer_has_gradients_of_zero():
    encoder = build(layer_drop=0.5)
    random.seed(1)  # 0.13, 0.85: drops the first of two layers
    encoder.train()(batch(33)).frames.data.sum().backward()
    first, second = ([p.grad for p in layer.parameters()] for layer in encoder.layers)
    assert all(grad is not None and not grad.any() for grad in first)
    assert any(grad.any() for grad in second)


def test_bfloat16_autocast_stays_close_and_sums_residuals_in_float32():
    encoder = build()
    exact = encoder(batch(33, 20)).frames.data
    with torch.autocast("cpu", torch.bfloat16):
        coarse = encoder(batch(33, 20)).frames.data
    assert coarse.dtype == torch.float32
    # frames have variance 1, bfloat16 8 bits
    torch.testing.assert_close(coarse, exact, atol=0.1, rtol=0)


def test_an_odd_number_of_channels_cannot_be_halved():
    with pytest.raises(ValueError, match="cgmlp_dim is 25, expected an even number"):
        build(cgmlp_dim=25)
