"""Laws of every registered encoder; a new entry is tested without writing a test."""

from __future__ import annotations

import copy
import dataclasses
import random

import pytest
import torch
import yaml

from asrtool import config
from asrtool.downsamplers import Conv2dConfig
from asrtool.encoders import ENCODERS, ChunkConfig, EchoConfig, StreamingEncoder, check_encoder
from asrtool.errors import UserError
from asrtool.trainer import parallel
from asrtool.trainer.capacity.memory import recompute
from asrtool.trainer.capacity.peak import Counter
from asrtool.types import Padded

BINS, LENGTHS = 16, (61, 1, 24, 38)
SMALL = {"num_layers": 3, "dim": 16, "num_heads": 2, "ffn_dim": 32, "kernel": 5}
SMALL |= {"cgmlp_dim": 24, "merge_kernel": 3}
SAMPLES = 320  # of a waveform for each frame of features
every_encoder = pytest.mark.parametrize("name", ENCODERS.names())


def small(name: str, **options) -> object:
    """A small configuration, from those `options` that it has."""
    kind = ENCODERS.config_type(name)
    known = {field.name for field in dataclasses.fields(kind)}
    options = {**SMALL, "downsamplers": {0: Conv2dConfig(channels=4)}, "size": "tiny", **options}
    return kind(**{key: value for key, value in options.items() if key in known})


def reads_samples(name: str) -> bool:
    return ENCODERS.class_of(small(name)).reads_samples


def streams(name: str) -> bool:
    return issubclass(ENCODERS.class_of(small(name)), StreamingEncoder)


def has(name: str, option: str) -> bool:
    return option in {field.name for field in dataclasses.fields(ENCODERS.config_type(name))}


def build(name: str, **options):
    torch.manual_seed(0)
    dim, shift = (1, 1 / 16000) if reads_samples(name) else (BINS, 0.01)
    return ENCODERS.build(
        small(name, **options), input_dim=dim, vocab_size=5, frame_shift=shift
    ).eval()


# what changes how a streaming encoder attends, by a name for it
WAYS = {
    "rotary": {"positions": "rotary"},
    "relative": {"positions": "relative"},
    "spans": {"attention": EchoConfig(windows=(5,), look="back", ramp=0.5, span_bias=0.0)},
    "window": {"attention": EchoConfig(mode="single", windows=(4,), look="back")},
    "windows": {
        "positions": "relative",
        "attention": EchoConfig(
            mode="heads", windows=(1, 12), look="back", projections="shared", gate="channel"
        ),
    },
}
STREAMING = [name for name in ENCODERS.names() if streams(name)]
every_streaming_encoder = pytest.mark.parametrize("name", STREAMING)


def streaming(name: str, left_chunks: int | None, **options) -> StreamingEncoder:
    stems = {
        0: Conv2dConfig(channels=4, causal=True),
        2: Conv2dConfig(channels=4, factor=2, causal=True),
    }
    encoder = build(
        name, causal=True, chunk=ChunkConfig(left_chunks=left_chunks), downsamplers=stems, **options
    )
    assert isinstance(encoder, StreamingEncoder)
    return encoder


def batch(padding: float = 0, name: str = "conformer") -> Padded:
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (SAMPLES * length + 7,) if reads_samples(name) else (length, BINS) for length in LENGTHS
    ]
    return Padded.stack([torch.randn(shape, generator=generator) for shape in shapes], padding)


@every_encoder
def test_shapes_are_as_promised(name):
    encoder = build(name)
    output = encoder(batch(name=name))
    assert output.frames.data.shape == (*output.positions.shape, encoder.dim)
    assert (output.frames.lengths >= 1).all() and (
        output.frames.lengths <= torch.tensor(LENGTHS)
    ).all()
    if isinstance(encoder, StreamingEncoder):
        assert output.frames.lengths.tolist() == [
            -(-length // encoder.input_frames) for length in LENGTHS
        ]


@every_encoder
def test_positions_are_places_that_increase_by_whole_numbers_from_0(name):
    output = build(name)(batch(name=name))
    assert not output.positions.is_floating_point()
    for row, length in zip(output.positions, output.frames.lengths.tolist(), strict=True):
        assert (row[:length] >= 0).all() and (row[:length].diff() > 0).all()


@every_encoder
def test_it_says_what_models_ask_of_it(name):
    encoder = build(name)
    check_encoder(encoder)
    assert encoder.frame_shift >= 0.01


@every_encoder
def test_one_that_cannot_stream_refuses_chunks(name):
    encoder = build(name)
    if not isinstance(encoder, StreamingEncoder) or encoder.obstacle:
        with pytest.raises(ValueError, match="cannot stream"):
            encoder(batch(name=name), chunk=4)


@every_encoder
def test_padding_changes_nothing(name):
    encoder = build(name)
    together = encoder(batch(name=name)).frames.unpad()
    for row, frames in enumerate(batch(name=name).unpad()):
        alone = encoder(Padded.stack([frames])).frames.data[0]
        # other sums in other shapes
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)


@every_encoder
def test_layers_that_are_computed_again_have_the_same_gradient_in_less_memory(name):
    noisy = {"dropout": 0.2, "layer_drop": 0.2, "num_layers": 4}
    if not list(parallel.units(build(name, **noisy))):  # an encoder without a list of layers
        with pytest.raises(UserError, match="has no list of layers; remove the key"):
            recompute(torch.nn.ModuleDict({"encoder": build(name, **noisy)}))
        return
    gradients, held = [], []
    for again in (False, True):
        encoder = build(name, **noisy).train()
        if again:
            recompute(torch.nn.ModuleDict({"encoder": encoder}))
        torch.manual_seed(1)
        random.seed(1)
        inputs = batch(name=name)
        with Counter([inputs.data, *encoder.parameters()]) as counter:
            output = encoder(inputs).frames.data
            held.append(counter.now)
            (output.double() ** 2).sum().backward()
        gradients.append({key: value.grad for key, value in encoder.named_parameters()})
    assert any(value is not None and value.any() for value in gradients[0].values())
    for key, value in gradients[0].items():
        assert value is gradients[1][key] is None or torch.equal(value, gradients[1][key]), key
    weights = sum(value.nbytes for value in encoder.parameters()) + inputs.data.nbytes
    # the layers of cnn are single operations, with nothing inside to compute again
    assert held[1] - weights < (1.01 if name == "cnn" else 0.95) * (held[0] - weights)


@every_encoder
def test_what_stands_in_the_padding_changes_nothing(name):
    encoder = build(name)
    clean_batch, dirty_batch = batch(name=name), batch(float("nan"), name)
    for clean, dirty in zip(
        encoder(clean_batch).frames.unpad(), encoder(dirty_batch).frames.unpad(), strict=True
    ):
        torch.testing.assert_close(dirty, clean, atol=0, rtol=0)


@every_encoder
def test_the_order_of_the_batch_does_not_matter(name):
    encoder, inputs = build(name), batch(name=name)
    order = torch.tensor([2, 0, 3, 1])
    forward = encoder(inputs).frames.data[order]
    shuffled = encoder(Padded(inputs.data[order], inputs.lengths[order])).frames.data
    torch.testing.assert_close(shuffled, forward, atol=1e-5, rtol=0)


@every_encoder
def test_every_parameter_gets_a_finite_gradient(name):
    encoder = build(name).train()
    output = encoder(batch(float("nan"), name))
    parts = (output.frames, *output.taps.values())
    sum(frames.square().sum() for part in parts for frames in part.unpad()).backward()
    grads = {key: parameter.grad for key, parameter in encoder.named_parameters()}
    assert [key for key, grad in grads.items() if grad is None or not grad.isfinite().all()] == []


@every_encoder
def test_one_frame_of_input_works(name):
    shape = (1, 1) if reads_samples(name) else (1, 1, BINS)
    frames = build(name)(Padded(torch.randn(shape), torch.tensor([1]))).frames
    assert frames.lengths.tolist() == [1] and frames.data.isfinite().all()


@every_encoder
def test_an_utterance_without_frames_harms_nobody(name):
    encoder, inputs = build(name), batch(name=name)
    before = encoder(inputs).frames.unpad()[0]
    after = encoder(Padded(inputs.data, inputs.lengths * torch.tensor([1, 0, 1, 1]))).frames
    torch.testing.assert_close(after.unpad()[0], before, atol=1e-5, rtol=0)
    assert after.data.isfinite().all()


@every_encoder
def test_its_configuration_survives_yaml(name):
    given = small(name)
    node = yaml.compose(yaml.safe_dump(config.encode(type(given), given)))
    assert config.decode(type(given), node) == given


def pieces(encoder: StreamingEncoder, chunk: int, seed: int):
    """Feed every row in pieces of random, ragged size, 0 included; yields outputs."""
    generator, rows = torch.Generator().manual_seed(seed), batch().unpad()
    cache, start = encoder.init_cache(len(rows), chunk), [0] * len(rows)
    ended = torch.zeros(len(rows), dtype=torch.bool)
    while not ended.all():
        sizes = torch.randint(0, 30, (len(rows),), generator=generator).tolist()
        piece = Padded.stack(
            [row[at : at + size] for row, at, size in zip(rows, start, sizes, strict=True)]
        )
        start = [at + size for at, size in zip(start, sizes, strict=True)]
        ended = torch.tensor([at >= len(row) for row, at in zip(rows, start, strict=True)])
        output, cache = encoder.forward_chunk(piece, cache, ended)
        yield output


@pytest.mark.parametrize("left_chunks", [None, 0, 1, 2])
@pytest.mark.parametrize("chunk", [1, 2, 4, 9])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param(name, options, id=f"{name}-{way}")
        for name in STREAMING
        for way, options in WAYS.items()
        if way == "rotary" or all(has(name, option) for option in options)
    ],
)
def test_streaming_equals_the_chunk_mask(name, options, chunk, left_chunks):
    encoder = streaming(name, left_chunks, **options)
    whole = encoder(batch(), chunk=chunk)
    outputs = list(pieces(encoder, chunk, seed=chunk))
    for row, expected in enumerate(whole.frames.unpad()):
        frames = torch.cat([output.frames.unpad()[row] for output in outputs])
        # other sums in other shapes
        torch.testing.assert_close(frames, expected, atol=1e-5, rtol=0)
        at = torch.cat([output.positions[row, : output.frames.lengths[row]] for output in outputs])
        assert torch.equal(at, whole.positions[row, : len(expected)])


@every_streaming_encoder
def test_a_row_that_ended_gives_no_more_frames(name):
    encoder = streaming(name, left_chunks=1)
    rows = torch.randn(2, 16, BINS)
    piece, cache = Padded(rows, torch.tensor([16, 16])), encoder.init_cache(2, 2)
    _, cache = encoder.forward_chunk(piece, cache, torch.tensor([True, False]))
    output, _ = encoder.forward_chunk(
        Padded(rows, torch.tensor([0, 16])), cache, torch.tensor([True, True])
    )
    assert output.frames.lengths.tolist() == [0, 2]


@every_streaming_encoder
def test_a_cache_is_never_changed_in_place(name):
    encoder = streaming(name, left_chunks=None)
    inputs, final = (
        Padded(torch.randn(2, 16, BINS), torch.tensor([16, 16])),
        torch.tensor([False, False]),
    )
    with torch.no_grad():
        _, cache = encoder.forward_chunk(inputs, encoder.init_cache(2, 2), final)
        kept = copy.deepcopy(cache)
        first, _ = encoder.forward_chunk(inputs, cache, final)
        again, _ = encoder.forward_chunk(inputs, cache, final)
        fresh, _ = encoder.forward_chunk(inputs, kept, final)
    assert torch.equal(first.frames.data, again.frames.data) and torch.equal(
        first.frames.data, fresh.frames.data
    )
