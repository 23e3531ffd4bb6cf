"""Echo-MSA in the own Conformer, and what gates and spans tell of themselves."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from asrtool.downsamplers import Conv2dConfig
from asrtool.encoders import ENCODERS, ChunkConfig, ConformerConfig, EchoConfig
from asrtool.nn.conformer import Memory
from asrtool.nn.positions import rotations
from asrtool.types import Padded

SMALL = ConformerConfig(
    num_layers=3,
    dim=16,
    num_heads=2,
    ffn_dim=32,
    kernel=5,
    dropout=0.0,
    downsamplers={0: Conv2dConfig(channels=4)},
)


def build(attention: EchoConfig | None, **options):
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, attention=attention, **options)
    return ENCODERS.build(config, input_dim=16, vocab_size=5, frame_shift=0.01).eval()


def batch(*lengths: int) -> Padded:
    generator = torch.Generator().manual_seed(0)
    return Padded.stack(
        [torch.randn(length, 16, generator=generator) for length in lengths or (200, 90, 41, 1)]
    )


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_with_the_gate_shut_it_is_the_plain_conformer(positions):
    plain, echo = (
        build(None, positions=positions),
        build(EchoConfig(gate_fixed=1.0), positions=positions),
    )
    names = {
        key.replace("attention.", "attention.full."): value
        for key, value in plain.state_dict().items()
        if ".attention." in key
    }
    echo.load_state_dict({**plain.state_dict(), **names}, strict=False)
    assert torch.equal(echo(batch()).frames.data, plain(batch()).frames.data)


def test_with_windows_wider_than_the_utterance_both_attentions_agree():
    """The copied branch turns queries and keys as the rotary attention beside it does."""
    encoder = build(EchoConfig(mode="single", windows=(1000,), gate_fixed=0.0))
    shut = build(EchoConfig(mode="single", windows=(1000,), gate_fixed=1.0))
    shut.load_state_dict(encoder.state_dict())
    for one, other in zip(
        encoder(batch()).frames.unpad(), shut(batch()).frames.unpad(), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mode": "heads", "windows": (4, 16)},
        {"mode": "layers", "windows": (4, 16, 64), "layers": (1, 2)},
        {"mode": "single", "projections": "shared", "gate": "channel"},
        {"projections": "fresh", "gate_input": "outputs"},
    ],
)
def test_every_parameter_learns_and_padding_changes_nothing(options):
    encoder = build(EchoConfig(**options))
    together = encoder(batch()).frames
    for row, frames in zip(batch().unpad(), together.unpad(), strict=True):
        torch.testing.assert_close(
            encoder(Padded.stack([row])).frames.data[0], frames, atol=1e-5, rtol=0
        )
    (together.data * torch.randn_like(together.data)).sum().backward()
    idle = [
        name
        for name, value in encoder.named_parameters()
        if value.grad is None or not (value.grad != 0).any()
    ]
    # which softmax takes out again
    assert [name for name in idle if not name.endswith("k_proj.bias")] == []


CAUSAL = {"causal": True, "downsamplers": {0: Conv2dConfig(channels=4, causal=True)}}


def test_windows_that_look_ahead_cannot_stream():
    with pytest.raises(ValueError, match="windows of attention echo look ahead; look: back"):
        build(EchoConfig(), chunk=ChunkConfig(), **CAUSAL)


def test_windows_that_look_back_see_no_later_frame():
    encoder = build(EchoConfig(look="back", gate_fixed=0.0), **CAUSAL)
    inputs = batch(200)
    changed = Padded(inputs.data.clone(), inputs.lengths)
    changed.data[:, 120:] += 1.0
    before, after = (encoder(x).frames.data[0] for x in (inputs, changed))
    torch.testing.assert_close(after[:30], before[:30], atol=1e-6, rtol=0)
    assert (after[30:] - before[30:]).abs().amax(1).min() > 1e-3


def test_spans_that_differ_from_frame_to_frame_stream():
    """Each frame and head with a width of its own, over pieces of any size."""
    encoder = build(
        EchoConfig(windows=(12,), look="back", span_bias=0.0, gate_bias=0.0),
        chunk=ChunkConfig(left_chunks=1),
        **CAUSAL,
    )
    spans = []
    for layer in encoder.layers:
        torch.nn.init.normal_(layer.attention.echo.spans.predict.weight)
        layer.attention.echo.spans.register_forward_hook(
            lambda module, inputs, output: spans.append(output)
        )
    whole = encoder(batch(200), chunk=2).frames.data
    assert spans[0].std() > 2  # frames
    cache, parts = encoder.init_cache(1, 2), []
    for piece in batch(200).data.split([3, 50, 1, 8, 96, 42], dim=1):
        size = torch.tensor([piece.shape[1]])
        final = torch.tensor([piece.shape[1] == 42])
        output, cache = encoder.forward_chunk(Padded(piece, size), cache, final)
        parts.append(output.frames.data[:, : output.frames.lengths[0]])
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("look", ["both", "back"])
def test_spans_are_float32_under_autocast(look):
    """Their gradient is as exact as that of any other weight in bfloat16; computed in bfloat16, it
    was 10 to 24 % off.
    """
    errors = []
    for seed in range(3):
        found = []
        for half in (False, True):
            encoder = build(EchoConfig(windows=(64,), look=look, span_bias=0.5), num_layers=1)
            attention = encoder.layers[0].attention
            torch.manual_seed(seed)
            torch.nn.init.normal_(attention.echo.spans.predict.weight, std=0.2)
            x, weights = torch.randn(3, 300, 16), torch.randn(3, 300, 16)
            frames = Memory(torch.arange(300).expand(3, -1), torch.ones(3, 300, dtype=torch.bool))
            turned = rotations(frames.positions, attention.num_frequencies)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                output, _ = attention(x, None, turned, None, frames)
            (output.float() * weights).sum().backward()
            found.append([p.grad.flatten() for p in attention.echo.spans.parameters()])
        exact, rough = (torch.cat(gradients) for gradients in found)
        errors.append(float((rough - exact).norm() / exact.norm()))
    assert max(errors) < 0.04, errors


def test_gates_and_spans_tell_of_valid_frames_in_evaluation_once():
    encoder = build(EchoConfig(gate_bias=0.0, span_bias=0.0, windows=(16,)))
    attention = encoder.layers[1].attention
    assert attention.gate.observed() is None
    encoder.train()(batch())
    assert attention.gate.observed() is None and attention.echo.spans.observed() is None
    gates, spans = [], []
    attention.gate.register_forward_hook(lambda module, inputs, output: gates.append(output))
    attention.echo.spans.register_forward_hook(lambda module, inputs, output: spans.append(output))
    encoder.eval()
    frames = encoder(batch(200, 90)).frames
    encoder(batch(41))
    seen, mask = attention.gate.observed(), frames.mask
    values = torch.cat([gates[0][mask].flatten(), gates[1].flatten()]).detach()
    assert seen["mean"] == pytest.approx(float(values.mean()), abs=1e-6)
    assert seen["deviation"] == pytest.approx(float(values.std(correction=0)), rel=1e-3)
    assert seen["extreme"] == 0 and attention.gate.observed() is None
    wide = torch.cat([spans[0].transpose(1, 2)[mask].flatten(), spans[1].flatten()]).detach()
    assert attention.echo.spans.observed()["mean"] == pytest.approx(float(wide.mean()), rel=1e-4)


def test_a_saturated_gate_is_told():
    encoder = build(EchoConfig(gate_bias=9.0))
    encoder(batch())
    assert encoder.layers[0].attention.gate.observed()["extreme"] == 1.0
