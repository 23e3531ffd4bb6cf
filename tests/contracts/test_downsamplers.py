"""Laws of every registered downsampler; a new entry is tested without writing a test."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from asrtool.downsamplers import DOWNSAMPLERS, StreamingDownsampler
from asrtool.types import Padded

BINS, DIM, LENGTHS = 16, 8, (37, 1, 24, 8)
every_downsampler = pytest.mark.parametrize("name", DOWNSAMPLERS.names())


def build(name: str, **options):
    """A small one, from those `options` that it has."""
    kind = DOWNSAMPLERS.config_type(name)
    known = {field.name for field in dataclasses.fields(kind)}
    options = {key: value for key, value in {"channels": 4, **options}.items() if key in known}
    torch.manual_seed(0)
    return DOWNSAMPLERS.build(kind(**options), dim_in=BINS, dim_out=DIM, vocab_size=5).eval()


def batch(padding: float = 0) -> Padded:
    generator = torch.Generator().manual_seed(0)
    return Padded.stack(
        [torch.randn(length, BINS, generator=generator) for length in LENGTHS], padding
    )


@every_downsampler
def test_lengths_are_neither_0_nor_above_the_input(name):
    lengths = build(name)(batch()).frames.lengths
    assert (lengths >= 1).all() and (lengths <= torch.tensor(LENGTHS)).all()


@every_downsampler
def test_positions_increase_strictly(name):
    output = build(name)(batch())
    for positions, length in zip(output.positions, output.frames.lengths.tolist(), strict=True):
        assert (positions[:length].diff() > 0).all()


@every_downsampler
def test_uniform_positions_are_every_factor_th(name):
    downsampler = build(name)
    given = torch.arange(max(LENGTHS)).mul(3).expand(len(LENGTHS), -1)
    if downsampler.uniform:
        steps = downsampler(batch(), given).positions.diff(dim=1)
        assert (steps == 3 * downsampler.factor).all()


@every_downsampler
def test_given_positions_are_passed_on_in_order(name):
    given = torch.arange(max(LENGTHS)).mul(3).expand(len(LENGTHS), -1)
    output = build(name)(batch(), given)
    for positions, length in zip(output.positions, output.frames.lengths.tolist(), strict=True):
        assert (
            set(positions[:length].tolist()) <= set(given[0].tolist())
            and (positions[:length].diff() > 0).all()
        )


@every_downsampler
def test_masked_frames_never_leak(name):
    downsampler = build(name)
    for row, (clean, dirty) in enumerate(
        zip(
            downsampler(batch()).frames.unpad(),
            downsampler(batch(float("nan"))).frames.unpad(),
            strict=True,
        )
    ):
        torch.testing.assert_close(dirty, clean, atol=0, rtol=0, msg=f"row {row}")


@every_downsampler
def test_alone_and_in_a_batch_are_the_same(name):
    downsampler = build(name)
    together = downsampler(batch()).frames.unpad()
    for row, frames in enumerate(batch().unpad()):
        alone = downsampler(Padded.stack([frames])).frames.data[0]
        # other sums in other shapes
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)


@every_downsampler
def test_every_parameter_gets_a_gradient(name):
    downsampler = build(name).train()
    output = downsampler(batch())
    sum(part.data.square().sum() for part in (output.frames, *output.taps.values())).backward()
    assert [
        key for key, parameter in downsampler.named_parameters() if parameter.grad is None
    ] == []


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in DOWNSAMPLERS.names()
        if isinstance(build(name, causal=True), StreamingDownsampler)
    ],
)
def test_piece_by_piece_equals_the_whole_where_it_streams(name):
    downsampler = build(name, causal=True)
    whole, rows = downsampler(batch()), batch().unpad()
    cache = downsampler.init_cache(len(LENGTHS))
    frames, positions = [[] for _ in LENGTHS], [[] for _ in LENGTHS]
    step = 2 * downsampler.factor
    for start in range(0, max(LENGTHS), step):
        output, cache = downsampler.forward_chunk(
            Padded.stack([row[start : start + step] for row in rows]), None, cache
        )
        for row, length in enumerate(output.frames.lengths.tolist()):
            frames[row].append(output.frames.data[row, :length])
            positions[row].append(output.positions[row, :length])
    for row, expected in enumerate(whole.frames.unpad()):
        torch.testing.assert_close(torch.cat(frames[row]), expected, atol=1e-5, rtol=0)
        assert torch.equal(torch.cat(positions[row]), whole.positions[row, : len(expected)])
