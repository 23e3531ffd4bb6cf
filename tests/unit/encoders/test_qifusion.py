"""Qifusion-Net's encoder against its equations, and what it may and may not hear."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest
import torch
import yaml
from torch.nn.functional import relu

from asrtool import config
from asrtool.downsamplers import Conv2dConfig, KeyframeConfig, StridedConvConfig
from asrtool.encoders import (
    ENCODERS,
    AccentConfig,
    ChunkConfig,
    Qifusion,
    QifusionConfig,
    StreamingEncoder,
)
from asrtool.encoders.conformer import Kept
from asrtool.encoders.qifusion import picked
from asrtool.types import Padded

SIZE = {"num_layers": 4, "dim": 16, "num_heads": 2, "ffn_dim": 32, "kernel": 3, "dropout": 0.0}
STEMS = {0: Conv2dConfig(channels=4, causal=True), 1: StridedConvConfig(kernel=3, causal=True)}
TAPS = ("acoustic", "accent_embedding", "accent")
LENGTHS = (75, 3, 48)


def build(accent: AccentConfig | None = None, **options) -> Qifusion:
    torch.manual_seed(0)
    accent = accent or AccentConfig(classes=4)
    options = {**SIZE, "downsamplers": STEMS, **options}
    encoder = ENCODERS.build(
        QifusionConfig(accent=accent, **options), input_dim=8, vocab_size=5, frame_shift=0.01
    ).eval()
    if encoder.layer_fusion.weights is not None:
        torch.nn.init.normal_(encoder.layer_fusion.weights)  # unequal, as after training
    return encoder


def batch(*lengths: int) -> Padded:
    generator = torch.Generator().manual_seed(1)
    return Padded.stack(
        [torch.randn(length, 8, generator=generator) for length in lengths or LENGTHS]
    )


def layer_outputs(encoder: Qifusion, inputs: Padded) -> list[torch.Tensor]:
    seen, hooks = [], []
    for layer in encoder.layers:
        hooks.append(layer.register_forward_hook(lambda _, __, result: seen.append(result[0])))
    encoder(inputs)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_layer_fusion_is_its_formula_number_by_number():
    encoder, inputs = build(AccentConfig(classes=4, layers=(1, 3))), batch(40)
    found = encoder(inputs).taps["accent_embedding"].data[0]
    outputs = [layer_outputs(encoder, inputs)[layer][0] for layer in (1, 3)]
    fusion = encoder.layer_fusion
    shares, kernel, bias = (
        fusion.weights.softmax(0),
        fusion.convolution.weight[0],
        fusion.convolution.bias,
    )
    expected = torch.empty_like(found)
    for s in range(found.shape[0]):
        for d in range(found.shape[1]):
            total = bias[0].clone()
            for number, output in enumerate(outputs):
                for i in range(5):
                    for j in range(5):
                        at, channel = s - 4 + i, d - 2 + j  # 4 frames back, 2 channels on each side
                        if at >= 0 and 0 <= channel < found.shape[1]:
                            total = (
                                total + shares[number] * kernel[number, i, j] * output[at, channel]
                            )
            expected[s, d] = total
    torch.testing.assert_close(found, relu(fusion.norm(expected)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("query", ["accent", "acoustic"])
def test_the_fusion_is_a_transformer_layer_with_norms_behind(query):
    encoder, inputs = build(AccentConfig(classes=4, query=query)), batch(60)
    output = encoder(inputs)
    acoustic, accent = output.taps["acoustic"].data, output.taps["accent_embedding"].data
    torch.manual_seed(3)
    # post-norm, ReLU
    peer = torch.nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True).eval()
    own = encoder.accent_fusion
    names = {
        "linear1": own.up_proj,
        "linear2": own.down_proj,
        "norm1": own.attention_norm,
        "norm2": own.ffn_norm,
    }
    for name, module in names.items():
        getattr(peer, name).load_state_dict(module.state_dict())
    projections = [own.attention.q_proj, own.attention.k_proj, own.attention.v_proj]
    peer.self_attn.in_proj_weight.data = torch.cat(
        [projection.weight for projection in projections]
    )
    peer.self_attn.in_proj_bias.data = torch.cat([projection.bias for projection in projections])
    peer.self_attn.out_proj.load_state_dict(own.attention.o_proj.state_dict())
    asked, memory = (accent, acoustic) if query == "accent" else (acoustic, accent)
    x = peer.norm1(acoustic + peer.self_attn(asked, memory, memory, need_weights=False)[0])
    expected = peer.norm2(x + peer.linear2(relu(peer.linear1(x))))
    torch.testing.assert_close(output.frames.data, expected, atol=1e-5, rtol=0)


def test_the_accent_head_is_a_causal_convolution_of_three_frames():
    encoder, inputs = build(), batch(60)
    taps = encoder(inputs).taps
    embedding = torch.cat([torch.zeros(2, 16), taps["accent_embedding"].data[0]])
    weight, bias = encoder.accent_head.convolution.weight, encoder.accent_head.convolution.bias
    for at in range(taps["accent"].data.shape[1]):
        expected = torch.einsum("adk,kd->a", weight, embedding[at : at + 3]) + bias
        torch.testing.assert_close(taps["accent"].data[0, at], expected, atol=1e-5, rtol=0)


def streamed(
    encoder: StreamingEncoder, inputs: Padded, chunk: int, seed: int, longest: int = 33
) -> list[dict[str, torch.Tensor]]:
    """What comes out of ragged pieces of random sizes, 0 included: row -> name -> frames."""
    generator, rows = torch.Generator().manual_seed(seed), inputs.unpad()
    found: list[dict] = [defaultdict(list) for _ in rows]
    cache, at = encoder.init_cache(len(rows), chunk), [0] * len(rows)
    while True:
        sizes = torch.randint(0, longest, (len(rows),), generator=generator).tolist()
        piece = Padded.stack(
            [row[start : start + size] for row, start, size in zip(rows, at, sizes, strict=True)]
        )
        at = [start + size for start, size in zip(at, sizes, strict=True)]
        ended = torch.tensor([start >= len(row) for row, start in zip(rows, at, strict=True)])
        output, cache = encoder.forward_chunk(piece, cache, ended)
        for name, part in {"frames": output.frames, **output.taps}.items():
            for row, frames in enumerate(part.unpad()):
                found[row][name].append(frames)
        if ended.all():
            return [{name: torch.cat(parts) for name, parts in row.items()} for row in found]


@pytest.mark.parametrize(
    "accent",
    [
        AccentConfig(classes=4),
        AccentConfig(classes=4, query="acoustic", layers=(2,)),
        AccentConfig(classes=4, fusion="add"),
    ],
)
@pytest.mark.parametrize("left_chunks", [None, 1, 2, 4])
@pytest.mark.parametrize("chunk", [1, 2, 4, 8, 16])
@torch.inference_mode()
def test_streaming_gives_frames_and_taps_of_the_chunk_mask(chunk, left_chunks, accent):
    encoder = build(accent, chunk=ChunkConfig(left_chunks=left_chunks))
    inputs = batch(301, 3, 148)
    whole = encoder(inputs, chunk=chunk)
    parts = {"frames": whole.frames, **whole.taps}
    for row, found in enumerate(streamed(encoder, inputs, chunk, seed=chunk)):
        for name, part in parts.items():
            torch.testing.assert_close(
                found[name], part.unpad()[row], atol=1e-5, rtol=0, msg=f"row {row}: {name}"
            )


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_nothing_looks_beyond_the_end_of_its_chunk(chunk):
    """Every module of the encoder: what it gives for earlier chunks does not change with later
    input.
    """
    encoder, inputs = build(chunk=ChunkConfig()), batch(160)
    cut = 2 * chunk * encoder.input_frames
    changed = Padded(inputs.data.clone(), inputs.lengths)
    changed.data[:, cut:] += torch.randn_like(changed.data[:, cut:])
    modules = {name: module for name, module in encoder.named_modules() if name}
    before, after = (results(encoder, modules, one, chunk) for one in (inputs, changed))
    checked = 0
    for name, old in before.items():
        early = {40: 4 * chunk, 20: 2 * chunk}.get(old.shape[1])  # before and behind the stride
        if early is None:
            continue  # frames are no dimension of their own
        torch.testing.assert_close(
            after[name][:, :early], old[:, :early], atol=1e-5, rtol=0, msg=name
        )
        assert not torch.allclose(after[name][:, early:], old[:, early:]), name
        checked += 1
    assert checked > 40


def results(
    encoder: Qifusion, modules: dict, inputs: Padded, chunk: int
) -> dict[str, torch.Tensor]:
    """Name -> the first tensor (B, S, ...) that a module gives."""
    found, hooks = {}, []

    def keep(name: str):
        def hook(_, __, result):
            result = result[0] if isinstance(result, tuple) else result
            result = result.frames.data if hasattr(result, "frames") else result
            if result.dim() == 3:
                found[name] = result.detach()

        return hook

    for name, module in modules.items():
        hooks.append(module.register_forward_hook(keep(name)))
    output = encoder(inputs, chunk=chunk)
    for hook in hooks:
        hook.remove()
    return {
        **found,
        "frames": output.frames.data,
        **{name: output.taps[name].data for name in TAPS},
    }


def test_left_chunks_may_be_limited_after_training():
    encoder, inputs = build(chunk=ChunkConfig()), batch(301)
    everything = encoder(inputs, chunk=4).frames.data
    encoder.left_chunks = 1
    limited = encoder(inputs, chunk=4)
    assert not torch.allclose(limited.frames.data, everything)
    found = streamed(encoder, inputs, 4, seed=0)[0]
    torch.testing.assert_close(found["frames"], limited.frames.data[0], atol=1e-5, rtol=0)


KEY_FRAMES = {0: STEMS[0], 3: KeyframeConfig(causal=True, drop=True)}
BELOW = [
    pytest.param(KEY_FRAMES, (1, 2), id="all below key frames"),
    pytest.param(KEY_FRAMES, (1, 3), id="below and behind key frames"),
    pytest.param(STEMS, (0, 2, 3), id="below and behind a stride"),
    pytest.param({**STEMS, **KEY_FRAMES}, (0, 1, 3), id="below a stride and key frames"),
]


@pytest.mark.parametrize("query", ["accent", "acoustic"])
@pytest.mark.parametrize(("downsamplers", "layers"), BELOW)
@torch.inference_mode()
def test_accents_are_heard_below_key_frames(downsamplers, layers, query):
    accent = AccentConfig(classes=4, layers=layers, query=query)
    encoder, inputs = build(accent, downsamplers=downsamplers), batch()
    output = encoder(inputs)
    heard = output.taps["accent_embedding"]
    assert torch.equal(heard.lengths, output.taps["accent"].lengths)
    frames = {name: part.unpad() for name, part in {"": output.frames, **output.taps}.items()}
    if max(layers) < 3:  # on all frames, of which only some are key frames
        assert torch.equal(heard.lengths, output.taps["key_frames"].lengths)
        assert (heard.lengths >= output.frames.lengths).all() and heard.lengths[0] > 1
    for row, one in enumerate(inputs.unpad()):
        alone = encoder(Padded.stack([one]))
        for name, part in {"": alone.frames, **alone.taps}.items():
            torch.testing.assert_close(frames[name][row], part.unpad()[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunk", [1, 2, 8])
@pytest.mark.parametrize(("downsamplers", "layers"), BELOW)
@torch.inference_mode()
def test_streaming_below_key_frames_gives_what_the_chunk_mask_gives(downsamplers, layers, chunk):
    accent = AccentConfig(classes=4, layers=layers)
    encoder = build(accent, chunk=ChunkConfig(left_chunks=2), downsamplers=downsamplers)
    inputs = batch(301, 3, 148)
    whole = encoder(inputs, chunk=chunk)
    for row, found in enumerate(streamed(encoder, inputs, chunk, seed=chunk)):
        for name, part in {"frames": whole.frames, **whole.taps}.items():
            torch.testing.assert_close(found[name], part.unpad()[row], atol=1e-5, rtol=0)


def test_the_embedding_is_read_at_the_positions_of_the_key_frames():
    positions = torch.tensor([[0, 2, 4, 6], [0, 2, 7, 7]])
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    source = Kept(torch.arange(8.0).view(2, 4, 1), positions, valid)
    wanted = Kept(
        torch.empty(0),
        torch.tensor([[0, 6], [2, 9]]),
        torch.tensor([[True, True], [True, False]]),
    )
    found = picked(source, wanted)[:, :, 0]
    assert found[0].tolist() == [0, 3] and found[1, 0] == 5


def test_heads_of_the_fusion_are_a_setting():
    encoder = build(AccentConfig(classes=4, num_heads=4))
    assert encoder.accent_fusion.attention.num_heads == 4
    assert encoder.layers[0].attention.num_heads == 2
    assert build().accent_fusion.attention.num_heads == 2
    inputs = batch(301)
    whole = encoder(inputs, chunk=2)
    found = streamed(encoder, inputs, 2, seed=0)[0]
    torch.testing.assert_close(found["frames"], whole.frames.data[0], atol=1e-5, rtol=0)


def test_without_labels_there_is_no_head_and_without_fusion_the_frames_are_the_acoustic_ones():
    encoder = build(AccentConfig(classes=0, fusion="none"))
    output = encoder(batch())
    assert set(output.taps) == {"acoustic", "accent_embedding"}
    assert torch.equal(output.frames.data, output.taps["acoustic"].data)


def test_compat_looks_ahead_as_the_release_does_and_therefore_cannot_stream():
    encoder = build(AccentConfig(classes=4, compat=True))
    taps = encoder(batch(60), chunk=2).taps
    assert (taps["accent"].data >= 0).all()  # ReLU in front of the softmax
    embedding = taps["accent_embedding"].data
    outputs = torch.stack(layer_outputs(encoder, batch(60))[2:], dim=1)  # (B, L, S, D)
    y = encoder.layer_fusion.convolution(torch.nn.functional.pad(outputs, (0, 4, 0, 4)))[:, 0]
    whole = encoder(batch(60)).taps["accent_embedding"].data
    # one mean for frames and channels
    expected = torch.nn.functional.instance_norm(y[:, None])[:, 0]
    torch.testing.assert_close(whole, relu(expected), atol=1e-5, rtol=0)
    assert embedding.shape == whole.shape
    with pytest.raises(ValueError, match="compat looks ahead"):
        encoder.init_cache(1, chunk=2)


def test_compat_draws_a_mask_of_its_own_for_the_fusion():
    encoder, inputs = build(AccentConfig(classes=4, compat=True)), batch(301)
    random.seed(0)
    drawn = {float(encoder(inputs).frames.data.sum().detach()) for _ in range(8)}
    acoustic = {float(encoder(inputs).taps["acoustic"].data.sum().detach()) for _ in range(8)}
    assert len(drawn) > 2 and len(acoustic) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accent": AccentConfig(layers=(4,))}, "accent.layers: there is no layer 4, .* 0 to 3"),
        ({"accent": AccentConfig(layers=(-1,))}, "accent.layers: there is no layer -1"),
        ({"accent": AccentConfig(num_heads=3)}, "num_heads is 3, expected a divisor of dim, 16"),
        ({"causal": False, "chunk": ChunkConfig()}, "chunk needs causal: true"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_built(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "2 or more"),
        ({"kernel": 4}, "odd"),
        ({"layers": (2, 2)}, "each once"),
        ({"layers": ()}, "at least one"),
    ],
)
def test_settings_of_the_accent_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        AccentConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sizes_ms": ()}, "chunk.sizes_ms needs dynamic: true and sizes above 0"),
        ({"sizes_ms": (160, 0)}, "chunk.sizes_ms needs dynamic: true and sizes above 0"),
        ({"sizes_ms": (160,), "dynamic": False}, "chunk.sizes_ms needs dynamic: true"),
        ({"sizes": (0,)}, "chunk.sizes needs dynamic: true"),
        ({"sizes": (4,), "sizes_ms": (160,)}, "chunk.sizes counts frames"),
        ({"max_ms": 0}, "chunk.max_ms is 0, expected more than 0"),
    ],
)
def test_chunk_sizes_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        ChunkConfig(**options)


def test_chunks_of_training_are_milliseconds_at_any_frame_rate():
    for stems, frame, longest in ((STEMS, 80, 12), ({0: STEMS[0]}, 40, 25)):
        encoder = build(chunk=ChunkConfig(), downsamplers=stems)
        assert encoder.longest_chunk == longest and encoder.chunk_sizes is None
        encoder = build(chunk=ChunkConfig(sizes_ms=(160, 320, 640)), downsamplers=stems)
        assert encoder.chunk_sizes == (160 // frame, 320 // frame, 640 // frame)
        assert encoder.longest_chunk == 640 // frame == encoder.frames_of(640)
    with pytest.raises(ValueError, match="chunk.sizes_ms is 120 ms, but a frame .* 80 or 160"):
        build(chunk=ChunkConfig(sizes_ms=(120,)))
    with pytest.raises(ValueError, match="chunk.max_ms is 50, shorter than a frame .*80 ms"):
        build(chunk=ChunkConfig(max_ms=50))
    assert build().longest_chunk is None


def test_chunks_of_earlier_trainings_still_load():
    node = yaml.compose("{dynamic: true, max_seconds: 0.4, sizes: null, left_chunks: null}")
    assert config.decode(ChunkConfig, node) == ChunkConfig(max_ms=400)
    node = yaml.compose("{max_seconds: 1.0, sizes: [4, 8]}")
    assert build(chunk=config.decode(ChunkConfig, node)).chunk_sizes == (4, 8)
    assert "sizes" not in config.encode(ChunkConfig, ChunkConfig())
