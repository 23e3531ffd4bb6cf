"""Graphs of one chunk give what the encoder gives of the whole, before they become ONNX."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import asrtool
from asrtool.downsamplers import KeyframeConfig, LinearConfig, StridedConvConfig
from asrtool.encoders import EBranchformerConfig, QifusionConfig
from asrtool.encoders.conformer import ChunkConfig
from asrtool.encoders.echo import EchoConfig
from asrtool.encoders.qifusion import AccentConfig
from asrtool.errors import UserError
from asrtool.export import cached, wenet, whole, zipformer
from asrtool.export.graph import PACKAGES
from asrtool.model_folder import build_model, in_chunks
from asrtool.recognizer import Recognizer
from asrtool.types import Padded


def streaming(toy: Path, left_chunks: int = 2, chunk_ms: float = 160, **change) -> Recognizer:
    """The toy with another encoder of random weights that can stream."""
    recognizer = asrtool.load(toy / "exp")
    encoder = recognizer.config.model.encoder
    stems = {0: dataclasses.replace(encoder.downsamplers[0], causal=True)}
    stems |= change.pop("downsamplers", {})
    kind = change.pop("kind", type(encoder))
    fields = {field.name: getattr(encoder, field.name) for field in dataclasses.fields(encoder)}
    fields |= {"num_layers": 2, "causal": True, "chunk": ChunkConfig(), "downsamplers": stems}
    config = dataclasses.replace(
        recognizer.config,
        model=dataclasses.replace(recognizer.config.model, encoder=kind(**{**fields, **change})),
    )
    torch.manual_seed(0)
    model = build_model(config, recognizer.tokenizer.size).eval()
    settings = dataclasses.replace(recognizer.settings, chunk_ms=chunk_ms, left_chunks=left_chunks)
    return dataclasses.replace(
        recognizer, config=config, model=in_chunks(model, settings), settings=settings
    )


QIFUSION = {"kind": QifusionConfig, "accent": AccentConfig(classes=2)}
EBRANCHFORMER = {"kind": EBranchformerConfig, "cgmlp_dim": 12, "kernel": 3, "merge_kernel": 7}
CHANGES = {
    "rotary": {},
    "relative": {"positions": "relative"},
    "three left chunks": {"left_chunks": 3, "chunk_ms": 80},
    "every frame": {"downsamplers": {0: LinearConfig()}, "chunk_ms": 40},
    "qifusion": QIFUSION,
    "ebranchformer": EBRANCHFORMER,
}


@pytest.mark.parametrize("name", CHANGES)
def test_chunk_by_chunk_is_the_whole_in_either_form(toy, name):
    recognizer = streaming(toy, **CHANGES[name])
    graph = cached.CachedGraph(recognizer, whole.head_of(recognizer)).eval()
    assert cached.compare(recognizer, graph, eager(graph)) < 1e-4
    packed = wenet.WenetGraph(graph, lower=20.0, least=-15.9424).eval()
    assert cached.compare(recognizer, graph, eager_wenet(packed)) < 1e-4
    assert (
        cached.compare(recognizer, graph, eager_zipformer(zipformer.ZipformerGraph(graph).eval()))
        < 1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rotary", "ebranchformer"])
def test_wenets_form_runs_in_onnxruntime(toy, tmp_path, name):
    for package in PACKAGES:
        pytest.importorskip(package, reason="pip install -e '.[onnx]'")
    recognizer = streaming(toy, **CHANGES[name])
    packed = wenet.WenetGraph(cached.CachedGraph(recognizer, "ctc")).eval()
    assert wenet.export(recognizer, packed, tmp_path / "model.onnx") < 1e-4


def test_streams_of_different_ages_share_a_batch(toy):
    recognizer = streaming(toy)
    graph = zipformer.ZipformerGraph(cached.CachedGraph(recognizer, "ctc")).eval()
    features, _ = whole.inputs(recognizer, 2, 80, seed=3, samples=False)
    chunks = features.split(16, 1)
    alone = [
        torch.cat([step(part[row : row + 1]) for part in chunks], 1)
        for row in (0, 1)
        for step in [eager_zipformer(graph)]
    ]
    # the second stream begins two chunks behind the first
    late, caches, found = 2, list(graph.first()), []
    axes = [axes.index("utterances") for axes in list(zipformer.ports(graph).inputs.values())[1:]]
    for number, chunk in enumerate(chunks):
        rows = chunk[:1]
        if number >= late:
            rows = torch.cat([rows, chunks[number - late][1:]])
        if number == late:
            caches = [
                torch.cat(pair, axis)
                for *pair, axis in zip(caches, graph.first(), axes, strict=True)
            ]
        with torch.inference_mode():
            log_probs, *caches = graph(rows, *caches)
        found.append(log_probs)
    torch.testing.assert_close(torch.cat([x[:1] for x in found], 1), alone[0])
    second = torch.cat([x[1:] for x in found[late:]], 1)
    torch.testing.assert_close(second, alone[1][:, : second.shape[1]])


def test_a_cache_that_is_lost_is_found(toy):
    recognizer = streaming(toy)
    graph = cached.CachedGraph(recognizer, "ctc").eval()
    with pytest.raises(
        UserError, match="the graph differs by .* for 5 chunks of 16 frames, more than"
    ):
        cached.compare(recognizer, graph, lambda features: eager(graph)(features))


def test_downsamplers_between_layers_have_caches_of_their_own_and_no_room_in_wenets(toy):
    recognizer = streaming(
        toy, downsamplers={1: StridedConvConfig(causal=True, kernel=3)}, chunk_ms=160
    )
    graph = cached.CachedGraph(recognizer, "ctc").eval()
    assert cached.compare(recognizer, graph, eager(graph)) < 1e-4
    assert (
        cached.compare(recognizer, graph, eager_zipformer(zipformer.ZipformerGraph(graph).eval()))
        < 1e-4
    )
    with pytest.raises(UserError, match=r"downsampler 1 \(StridedConv\) changes the number of"):
        wenet.WenetGraph(graph)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"downsamplers": {1: KeyframeConfig(causal=True)}},
            r"downsampler 1 \(Keyframe\) depends on what is said",
        ),
        ({"attention": EchoConfig(look="back")}, "echo} has caches that cannot"),
        ({"left_chunks": -1}, "give --left-chunks"),
    ],
    ids=["keyframe", "echo", "all left chunks"],
)
def test_caches_without_a_fixed_size_are_refused_by_name(toy, change, what):
    with pytest.raises(UserError, match=what):
        cached.CachedGraph(streaming(toy, **change), "ctc")


def test_the_metadata_make_the_first_caches(toy):
    packed = wenet.WenetGraph(cached.CachedGraph(streaming(toy), "ctc"))
    facts = {key: int(value) for key, value in packed.metadata().items() if key != "model_type"}
    # as sherpa-onnx makes them: csrc/online-wenet-ctc-model.cc, InitStates
    keys, dim = facts["chunk_size"] * facts["left_chunks"], facts["output_size"]
    attention, convolution = packed.first()
    assert attention.shape == (facts["num_blocks"], facts["head"], keys, dim // facts["head"] * 2)
    assert convolution.shape == (facts["num_blocks"], 1, dim, facts["cnn_module_kernel"] - 1)
    length = (facts["chunk_size"] - 1) * facts["subsampling_factor"] + facts["right_context"] + 1
    assert length == packed.cached.input_frames


def eager(graph: cached.CachedGraph):
    state = list(graph.state.values())

    @torch.inference_mode()
    def step(features: Tensor) -> Tensor:
        log_probs, *state[:] = graph(features, *state)
        return log_probs

    return step


def eager_wenet(graph: wenet.WenetGraph):
    caches, offset = list(graph.first()), graph.keys

    @torch.inference_mode()
    def step(features: Tensor) -> Tensor:
        nonlocal offset
        heard = min(offset - graph.keys, graph.keys)
        mask = torch.arange(graph.keys + graph.cached.chunk) >= graph.keys - heard
        places = torch.tensor([offset]), torch.tensor([graph.keys])
        log_probs, *caches[:] = graph(features + graph.lower, *places, *caches, mask[None, None])
        offset += log_probs.shape[1]
        return log_probs

    return step


def eager_zipformer(graph: zipformer.ZipformerGraph):
    caches = list(graph.first())

    @torch.inference_mode()
    def step(features: Tensor) -> Tensor:
        log_probs, *caches[:] = graph(features, *caches)
        return log_probs

    return step


def test_rounding_grows_with_the_log_probability_and_other_differences_are_refused():
    expected = Padded.stack([torch.tensor([[-0.5, -30.0]])])
    near, far = np.array([[[-0.50005, -30.0]]]), np.array([[[-0.5, -30.0004]]])
    assert whole.checked(near, expected, "it") == pytest.approx(5e-5, rel=0.01)
    assert whole.checked(far, expected, "it") == pytest.approx(4e-4, rel=0.01)
    for wrong in ([-0.5002, -30.0], [-0.5, -30.004], [-0.5, np.nan]):
        with pytest.raises(UserError, match="the graph differs by"):
            whole.checked(np.array([[wrong]]), expected, "it")
