from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from asrtool.downsamplers import Conv2dConfig
from asrtool.encoders import ENCODERS, ChunkConfig, Conformer, ConformerConfig
from asrtool.encoders.echo import EchoConfig, EchoSelfAttention
from asrtool.nn.conformer import ConformerLayer
from asrtool.types import Padded

SIZE = {"num_layers": 2, "dim": 16, "num_heads": 2, "ffn_dim": 32, "kernel": 3}
CAUSAL = {"causal": True, "downsamplers": {0: Conv2dConfig(channels=4, causal=True)}}


def build(**options) -> Conformer:
    torch.manual_seed(0)
    options = {**SIZE, "downsamplers": {0: Conv2dConfig(channels=4)}, **options}
    return ENCODERS.build(ConformerConfig(**options), input_dim=8, vocab_size=5, frame_shift=0.01)


def batch(*lengths: int) -> Padded:
    generator = torch.Generator().manual_seed(1)
    return Padded.stack([torch.randn(length, 8, generator=generator) for length in lengths])


def test_frames_and_their_shift_follow_the_stem():
    encoder = build()
    assert (encoder.dim, encoder.frame_shift, encoder.input_frames) == (16, 0.04, 4)
    output = encoder(batch(33, 5))
    assert output.frames.lengths.tolist() == [9, 2]
    assert output.positions[0].tolist() == list(range(9))


def test_a_stride_between_layers_keeps_positions_on_the_grid_of_the_stem():
    downsamplers = {0: Conv2dConfig(channels=4), 1: Conv2dConfig(channels=4, factor=2)}
    encoder = build(downsamplers=downsamplers)
    assert (encoder.frame_shift, encoder.input_frames) == (0.04, 8)
    assert encoder(batch(33)).positions.tolist() == [[0, 2, 4, 6, 8]]


def test_frames_beyond_the_length_are_zero():
    assert not build()(batch(33, 5)).frames.data[1, 2:].any()


def test_a_chunk_limits_what_a_frame_sees():
    encoder, inputs = build(**CAUSAL).eval(), batch(64)
    changed = Padded(inputs.data.clone(), inputs.lengths)
    changed.data[:, 32:] += 1
    before, after = (encoder(one, chunk=8).frames.data for one in (inputs, changed))
    torch.testing.assert_close(before[:, :8], after[:, :8], atol=1e-6, rtol=0)
    assert not torch.allclose(before[:, 8:], after[:, 8:])


def test_without_chunks_every_frame_sees_everything():
    encoder, inputs = build(**CAUSAL).eval(), batch(64)
    changed = Padded(inputs.data.clone(), inputs.lengths)
    changed.data[:, 60:] += 1
    assert not torch.allclose(encoder(inputs).frames.data[:, 0], encoder(changed).frames.data[:, 0])


def test_left_chunks_limit_the_past():
    encoder = build(num_layers=1, chunk=ChunkConfig(left_chunks=1), **CAUSAL)
    inputs = batch(96)
    changed = Padded(inputs.data.clone(), inputs.lengths)
    changed.data[:, :16] += 1  # chunk 0 of 4 frames; convolutions reach into chunk 1
    before, after = (encoder.eval()(one, chunk=4).frames.data for one in (inputs, changed))
    torch.testing.assert_close(before[:, 16:], after[:, 16:], atol=1e-6, rtol=0)
    assert not torch.allclose(before[:, 4:8], after[:, 4:8])


def test_dynamic_chunks_are_drawn_in_training_alone():
    encoder = build(dropout=0.0, chunk=ChunkConfig(max_ms=200), **CAUSAL)
    random.seed(0)
    trained = {float(encoder.train()(batch(64)).frames.data.detach().sum()) for _ in range(12)}
    evaluated = {float(encoder.eval()(batch(64)).frames.data.detach().sum()) for _ in range(4)}
    assert len(trained) > 2 and len(evaluated) == 1


def test_a_dropped_layer_has_gradients_of_zero():
    encoder = build(layer_drop=0.5)
    random.seed(1)  # 0.13, 0.85: drops the first of two layers
    encoder.train()(batch(33)).frames.data.sum().backward()
    first, second = ([p.grad for p in layer.parameters()] for layer in encoder.layers)
    assert all(grad is not None and not grad.any() for grad in first)
    assert any(grad.any() for grad in second)


@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_bfloat16_autocast_stays_close_and_sums_residuals_in_float32(positions):
    encoder = build(positions=positions).eval()
    exact = encoder(batch(33, 20)).frames.data
    with torch.autocast("cpu", torch.bfloat16):
        coarse = encoder(batch(33, 20)).frames.data
    assert coarse.dtype == torch.float32
    # frames have variance 1, bfloat16 8 bits
    torch.testing.assert_close(coarse, exact, atol=0.1, rtol=0)


def test_hours_of_streaming_lose_no_precision():
    encoder = build(chunk=ChunkConfig(left_chunks=2), **CAUSAL).eval()
    final, inputs = torch.tensor([False]), batch(32)
    cache = encoder.init_cache(1, chunk=8)
    for _ in range(6):  # the same 8 frames again and again
        early, cache = encoder.forward_chunk(inputs, cache, final)
    hours = 8 * 100_000
    stem, memory = cache.downsamplers[0], cache.memories[0]
    late_stem = type(stem)(stem.histories, stem.emitted + hours)
    late_memory = type(memory)(memory.positions + hours, memory.valid)
    late = type(cache)(cache.chunk, cache.pending, {0: late_stem}, {0: late_memory}, cache.layers)
    expected, _ = encoder.forward_chunk(inputs, cache, final)
    got, _ = encoder.forward_chunk(inputs, late, final)
    assert torch.equal(got.frames.data, expected.frames.data)
    assert torch.equal(got.positions, expected.positions + hours)


def test_the_cache_grows_no_longer_than_the_left_chunks():
    encoder = build(chunk=ChunkConfig(left_chunks=2), **CAUSAL).eval()
    cache = encoder.init_cache(1, chunk=4)
    for _ in range(9):
        _, cache = encoder.forward_chunk(batch(16), cache, torch.tensor([False]))
    assert cache.layers[0].attention.key.shape[2] == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk": ChunkConfig()}, "chunk needs causal: true"),
        ({"chunk": ChunkConfig(), "causal": True}, "downsampler 0 \\(Conv2d\\) looks ahead"),
        ({"downsamplers": {1: Conv2dConfig()}}, "needs an entry 0"),
        ({"downsamplers": {0: Conv2dConfig(), 2: Conv2dConfig()}}, "there is no layer 2 among 2"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


def test_a_chunk_asked_of_an_encoder_that_looks_ahead_is_refused():
    with pytest.raises(ValueError, match="cannot stream: it is not causal"):
        build()(batch(33), chunk=4)


class Parallel(ConformerLayer):
    """Attention and convolution side by side, as in a Branchformer."""

    def forward(self, x, scope, cache=None):
        normalised = self.attention_norm(x)
        y, seen = self.attention(
            normalised, scope.visible, scope.rotations, cache and cache.attention, scope.frames
        )
        z, history = self.convolution(normalised, scope.valid, cache and cache.convolution)
        x = self.final_norm(x + y + z)
        return x, cache and replace(cache, attention=seen.gather(scope.keep), convolution=history)


class Branched(Conformer):
    def build_layer(self, config, index):
        layer = super().build_layer(config, index)
        layer.__class__ = Parallel
        return layer


class Convolutional(Conformer):
    def build_layer(self, config, index):
        layer = super().build_layer(config, index)
        layer.attention = None
        return layer


def built(kind: type[Conformer], **options) -> Conformer:
    config = ConformerConfig(**{**SIZE, **CAUSAL, **options})
    return kind(config, input_dim=8, vocab_size=5, frame_shift=0.01).eval()


def test_a_subclass_has_layers_of_its_own_which_stream_and_keep_the_configs_attention():
    encoder = built(Branched, attention=EchoConfig(windows=(4,), look="back"))
    assert all(isinstance(layer.attention, EchoSelfAttention) for layer in encoder.layers)
    inputs, cache, pieces = batch(64), encoder.init_cache(1, 4), []
    whole = encoder(inputs, chunk=4).frames.data
    for start in (0, 24):
        end = start + 24 if not start else 64
        piece = Padded(inputs.data[:, start:end], torch.tensor([end - start]))
        output, cache = encoder.forward_chunk(piece, cache, torch.tensor([end == 64]))
        pieces.append(output.frames.data[:, : int(output.frames.lengths)])
    torch.testing.assert_close(torch.cat(pieces, 1), whole, atol=1e-5, rtol=0)


def test_a_key_that_the_layers_of_a_subclass_would_not_use_is_refused():
    with pytest.raises(
        ValueError, match="layers of Convolutional .* have none; remove `attention`"
    ):
        built(Convolutional, attention=EchoConfig(windows=(4,)))
