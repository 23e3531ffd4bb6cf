"""Key frames inside the Conformer: the same numbers alone, in a batch and in pieces."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from asrtool.downsamplers import Conv2dConfig, KeyframeConfig, StridedConvConfig
from asrtool.encoders import ENCODERS, ChunkConfig, ConformerConfig
from asrtool.encoders.conformer import Conformer
from asrtool.encoders.echo import EchoConfig
from asrtool.encoders.qifusion import AccentConfig, QifusionConfig
from asrtool.types import Padded

BINS, LENGTHS = 16, (141, 1, 64, 98)


def build(
    positions: str = "rotary", left_chunks: int | None = None, causal: bool = False, **options
) -> Conformer:
    torch.manual_seed(0)
    keyframe = KeyframeConfig(**{"causal": causal, **options})
    config = ConformerConfig(
        num_layers=4,
        dim=16,
        num_heads=2,
        ffn_dim=32,
        kernel=5,
        positions=positions,
        causal=causal,
        chunk=ChunkConfig(left_chunks=left_chunks) if causal else None,
        downsamplers={0: Conv2dConfig(channels=4, causal=causal), 2: keyframe},
    )
    encoder = Conformer(config, input_dim=BINS, vocab_size=5, frame_shift=0.01).eval()
    with torch.no_grad():
        encoder.downsamplers["2"].head.weight.mul_(10.0)  # many different tokens, blanks among them
    return encoder


def batch(padding: float = 0) -> Padded:
    generator = torch.Generator().manual_seed(0)
    return Padded.stack(
        [torch.randn(length, BINS, generator=generator) for length in LENGTHS], padding
    )


@pytest.mark.parametrize(
    "options", [{}, {"keep": 5}, {"fusion": "concat", "radius": 2}, {"drop": False}]
)
@pytest.mark.parametrize("positions", ["rotary", "relative"])
def test_alone_and_in_a_batch_are_the_same(positions, options):
    encoder = build(positions, **options)
    together = encoder(batch(float("nan")))
    full = [-(-length // 4) for length in LENGTHS]
    lengths = together.frames.lengths.tolist()
    assert lengths == full if options.get("drop") is False else lengths[0] < full[0]
    assert together.taps["inter_ctc"].lengths.tolist() == full
    for row, frames in enumerate(batch().unpad()):
        alone = encoder(Padded.stack([frames]))
        torch.testing.assert_close(
            together.frames.unpad()[row], alone.frames.data[0], atol=1e-5, rtol=0
        )
        assert together.positions[row, : lengths[row]].tolist() == alone.positions[0].tolist()


@pytest.mark.parametrize("left_chunks", [None, 0, 2])
@pytest.mark.parametrize("chunk", [1, 3, 8])
@pytest.mark.parametrize("kind", ["attention", "none"])
def test_causal_key_frames_stream(kind, chunk, left_chunks):
    encoder = build(left_chunks=left_chunks, causal=True, fusion=kind)
    whole, rows = encoder(batch(), chunk=chunk), batch().unpad()
    cache, start, ended = (
        encoder.init_cache(len(rows), chunk),
        [0] * len(rows),
        torch.zeros(len(rows)).bool(),
    )
    found, places = [[] for _ in rows], [[] for _ in rows]
    generator = torch.Generator().manual_seed(chunk)
    while not ended.all():
        sizes = torch.randint(0, 40, (len(rows),), generator=generator).tolist()
        piece = Padded.stack(
            [row[at : at + size] for row, at, size in zip(rows, start, sizes, strict=True)]
        )
        start = [at + size for at, size in zip(start, sizes, strict=True)]
        ended = torch.tensor([at >= len(row) for row, at in zip(rows, start, strict=True)])
        output, cache = encoder.forward_chunk(piece, cache, ended)
        for row, size in enumerate(output.frames.lengths.tolist()):
            found[row].append(output.frames.data[row, :size])
            places[row] += output.positions[row, :size].tolist()
    for row, expected in enumerate(whole.frames.unpad()):
        torch.testing.assert_close(torch.cat(found[row]), expected, atol=1e-5, rtol=0)
        assert places[row] == whole.positions[row, : len(expected)].tolist()


def test_fusion_that_looks_ahead_does_not_stream():
    downsamplers = {0: Conv2dConfig(causal=True), 2: KeyframeConfig()}
    encoder = ConformerConfig(
        num_layers=4, causal=True, chunk=ChunkConfig(), downsamplers=downsamplers
    )
    with pytest.raises(ValueError, match=r"its downsampler 2 \(Keyframe\) looks ahead"):
        Conformer(encoder, input_dim=BINS, vocab_size=5, frame_shift=0.01)


@pytest.mark.parametrize(
    "kind",
    [
        partial(ConformerConfig, attention=EchoConfig(windows=(4,))),
        partial(QifusionConfig, accent=AccentConfig(classes=3)),
        partial(
            ConformerConfig,
            downsamplers={0: Conv2dConfig(), 1: StridedConvConfig(), 2: KeyframeConfig()},
        ),
    ],
    ids=["echo", "qifusion", "strided_conv"],
)
def test_key_frames_combine_with_other_methods(kind):
    torch.manual_seed(0)
    small = {"num_layers": 4, "dim": 16, "num_heads": 2, "ffn_dim": 32, "kernel": 5}
    stems = {0: Conv2dConfig(channels=4), 2: KeyframeConfig()}
    config = kind(
        **{**small, **({} if "downsamplers" in kind.keywords else {"downsamplers": stems})}
    )
    encoder = ENCODERS.build(config, input_dim=BINS, vocab_size=5, frame_shift=0.01).eval()
    with torch.no_grad():
        encoder.downsamplers["2"].head.weight.mul_(10.0)
    together = encoder(batch(float("nan")))
    assert (together.frames.lengths[0] < together.taps["inter_ctc"].lengths[0]).item()
    for row, frames in enumerate(batch().unpad()):
        alone = encoder(Padded.stack([frames])).frames.data[0]
        torch.testing.assert_close(together.frames.unpad()[row], alone, atol=1e-5, rtol=0)
