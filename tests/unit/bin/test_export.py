"""`asrtool export`: the graph gives what PyTorch gives, at any batch size and length; or one
sentence.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import asrtool
from asrtool.bin import export
from asrtool.downsamplers import StridedConvConfig
from asrtool.encoders import ENCODERS, WhisperConfig
from asrtool.encoders.conformer import ChunkConfig
from asrtool.errors import UserError
from asrtool.export import build, graph, prove, web, whole
from asrtool.export.build import ExportConfig
from asrtool.log import logger
from asrtool.model_folder import build_model, in_chunks
from asrtool.recognizer import Recognizer
from tests import toy_experiment as toys


def run(toy: Path, out: Path, *options: object) -> dict:
    """What export.json says."""
    export.main([str(toy / "exp"), "--out", str(out), *map(str, options)])
    return json.loads((out / "export.json").read_text())


def test_missing_packages_are_one_sentence(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "loads", lambda name: name == "onnx")
    with pytest.raises(
        UserError, match=r"export needs onnxscript, onnxruntime, .* " r"'.\[onnx\]'"
    ):
        run(toy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_sherpa_is_said_before_anything_is_written(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sherpa_onnx", None)
    monkeypatch.setattr(export, "require_packages", lambda: None)
    with pytest.raises(UserError, match=r"sherpa-onnx, which is not installed .*--no-check"):
        run(toy, tmp_path / "out", "--for", "sherpa-onnx", "--data", toy / "data" / "test")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (
            ("--for", "sherpa-onnx"),
            "give a test set with --data, or export without the comparison with --no-check",
        ),
        (("--no-check", "--data", "d"), "contradict each other"),
        (("--left-chunks", 2), "belong to --streaming"),
        (("--for", "web"), "--for web needs onnxruntime-web: npm install onnxruntime-web, then"),
        (("--for", "web", "--ort", "nowhere"), "nowhere: ort.wasm.min.mjs is missing, expected"),
        (("--ort", "dist"), "--ort belongs to --for web"),
        (("--caches", "zipformer"), "--caches belongs to --for sherpa-onnx --streaming"),
        (("--from-samples", "--streaming"), "leave out --streaming"),
        (
            ("--from-samples", "--for", "sherpa-onnx", "--no-check"),
            "sherpa-onnx computes log-mel features by itself and gives models no samples",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(toy, tmp_path, options, what):
    with pytest.raises(UserError, match=what):
        run(toy, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_ctc_head_is_refused(toy):
    recognizer = asrtool.load(toy / "exp")
    del recognizer.model.heads["ctc"]
    with pytest.raises(UserError, match="frame-synchronous head .*model has: none"):
        whole.head_of(recognizer)


def test_a_model_that_sherpa_would_hear_wrongly_is_refused(toy, tmp_path):
    with pytest.raises(UserError, match="fbank.rate is 8000, there 16000"):
        build.build(
            asrtool.load(toy / "exp"), ExportConfig(sherpa=True), toy / "exp" / "vocab", tmp_path
        )
    assert not list(tmp_path.iterdir())


def test_texts_and_error_rates_are_shown_and_a_difference_is_an_error(toy, caplog, monkeypatch):
    monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level("INFO")
    rows = prove.read_set(toy / "data" / "test")
    ours = {row.id: row.text for row in rows}
    theirs = {**ours, "u003": "a b c d e f g"}
    proof = prove.compare(rows, ours, theirs, "the other", toy / "data" / "test", "wer")
    said = caplog.text
    assert "u003: asrtool '" in said and "the other 'a b c d e f g'" in said
    assert "1 of 12 texts differ; WER 0.00 % by asrtool, " in said
    assert proof.differing == 1 and proof.points == proof.exported > 0
    prove.refuse(proof, "the other", most=proof.points)
    with pytest.raises(UserError, match=r"the other has .* % WER where asrtool has 0.00 %: more"):
        prove.refuse(proof, "the other", most=proof.points - 0.01)


def test_a_proof_needs_texts(toy, tmp_path):
    for name in ("wav.scp", "utt2spk"):
        (tmp_path / name).write_text((toy / "data" / "test" / name).read_text())
    with pytest.raises(UserError, match=r"no utterance has a text; error rates need .*text"):
        prove.read_set(tmp_path)


@pytest.fixture
def needs_onnx() -> None:
    for name in graph.PACKAGES:
        pytest.importorskip(name, reason="pip install -e '.[onnx]'")


def check_graph(file: Path) -> None:
    """Its axes have names, nothing is said of the values inside, and older runtimes read it."""
    import onnx

    model = onnx.load(file)
    axes = {
        value.name: tuple(
            axis.dim_param for axis in value.type.tensor_type.shape.dim if axis.dim_param
        )
        for value in (*model.graph.input, *model.graph.output)
    }
    assert axes == {**whole.INPUTS, **whole.OUTPUTS}
    assert not model.graph.value_info
    assert (model.ir_version, model.opset_import[0].version) == (8, 18)


def read(recognizer: Recognizer, folder: Path, data: np.ndarray) -> str:
    """The text of features or samples by onnxruntime and tokens.txt alone."""
    tokens = (folder / "tokens.txt").read_text().split("\n")
    log_probs, frames = graph.session(folder / "model.onnx").run(
        None, {"inputs": data[None], "lengths": np.array([len(data)])}
    )
    path = log_probs[0, : frames[0]].argmax(-1).tolist()
    labels = [one for one, before in zip(path, [0, *path], strict=False) if one and one != before]
    return "".join(tokens[label] for label in labels).replace("<space>", " ")


TEXTS = ("abc de", "a", "bad cab ace dea")


@pytest.mark.slow
def test_the_graph_recognises_what_the_model_does(toy, tmp_path, needs_onnx):
    facts = run(toy, tmp_path / "out", "--int8", "--data", toy / "data" / "test")
    assert facts["largest difference"] < 1e-4
    assert {name: proof["differing"] for name, proof in facts["proof"].items()} == {
        "model.onnx": 0,
        "model.int8.onnx": 0,
    }
    check_graph(tmp_path / "out" / "model.onnx")
    sizes = [(tmp_path / "out" / name).stat().st_size for name in facts["sha256"]]
    assert sizes[1] < 0.8 * sizes[0]
    recognizer = asrtool.load(toy / "exp")
    plain = replace(recognizer, cmvn=None)  # the graph normalises by itself
    for text in TEXTS:
        features = plain.inputs(toys.sound(text)).numpy()
        assert read(recognizer, tmp_path / "out", features) == text


@pytest.mark.slow
def test_a_graph_from_samples_recognises_them(toy, tmp_path, needs_onnx):
    facts = run(toy, tmp_path / "out", "--from-samples", "--data", toy / "data" / "test")
    assert facts["input"] == "waveform" and facts["rate"] == toys.RATE
    assert facts["proof"]["model.onnx"]["differing"] == 0
    check_graph(tmp_path / "out" / "model.onnx")
    for text in TEXTS:
        assert read(asrtool.load(toy / "exp"), tmp_path / "out", toys.sound(text)) == text


@pytest.mark.slow
def test_a_page_is_written_around_the_smaller_graph(toy, tmp_path, needs_onnx):
    (tmp_path / "dist").mkdir()
    for name in web.ORT:
        (tmp_path / "dist" / name).write_text(name)
    page = ["--for", "web", "--ort", tmp_path / "dist", "--int8"]
    facts = run(toy, tmp_path / "out", *page, "--data", toy / "data" / "test")
    assert facts["input"] == "waveform" and facts["proof"]["model.int8.onnx"]["differing"] == 0
    sizes = facts["page"]["bytes"]
    assert facts["page"]["model"] == "model.int8.onnx" and facts["page"]["name"] == "exp"
    assert sizes == {name: (tmp_path / "out" / name).stat().st_size for name in sizes}
    assert list(sizes) == ["model.int8.onnx", "ort/ort-wasm-simd-threaded.wasm"]
    with pytest.raises(UserError, match="the page of --for web hears whole recordings"):
        run(toy, tmp_path / "other", *page, "--streaming")


def other(toy: Path, data: dict | None = None, **change: object) -> Recognizer:
    """The toy with another encoder of random weights."""
    recognizer = asrtool.load(toy / "exp")
    encoder = change.pop("encoder", recognizer.config.model.encoder)
    config = replace(
        recognizer.config,
        model=replace(recognizer.config.model, encoder=replace(encoder, **change)),
        data=replace(recognizer.config.data, **(data or {})),
    )
    torch.manual_seed(0)
    model = build_model(config, recognizer.tokenizer.size).eval()
    return replace(recognizer, config=config, model=model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"positions": "relative"}, {"causal": True, "chunk": ChunkConfig()}], ids=str
)
def test_other_encoders_export_too(toy, tmp_path, needs_onnx, change):
    if "causal" in change:
        stems = asrtool.load(toy / "exp").config.model.encoder.downsamplers
        stems = {place: replace(stem, causal=True) for place, stem in stems.items()}
        change = {**change, "downsamplers": stems}
    recognizer = other(toy, **change)
    drawn = whole.Graph(recognizer, "ctc").eval()
    assert whole.export(recognizer, drawn, tmp_path / "model.onnx") < 1e-4


PRETRAINED = ("wav2vec2", "data2vec", "wavlm", "wav2vec2-bert", "whisper", "whisper of 30 s")


@pytest.mark.slow
@pytest.mark.hf
@pytest.mark.parametrize("name", PRETRAINED)
def test_pretrained_encoders_export_with_their_front_end(toy, tmp_path, needs_onnx, name):
    pytest.importorskip("transformers", reason="pip install -e '.[ssl]'")
    recognizer = pretrained(toy, name)
    drawn = whole.Graph(recognizer, "ctc", from_samples=True).eval()
    assert whole.export(recognizer, drawn, tmp_path / "model.onnx") < 1e-4
    # texts too, of an utterance that is shorter than what the graph was drawn with
    hear = prove.by_onnxruntime(recognizer, tmp_path / "model.onnx", reads_samples=True)
    for seed, samples in enumerate((16000, 8000, 450)):
        sound = np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)
        assert hear(sound) == prove.by_asrtool(recognizer)(sound)


def pretrained(toy: Path, name: str) -> Recognizer:
    if name.startswith("whisper"):
        encoder = WhisperConfig(size="tiny", pad_to_30s=name != "whisper")
    else:
        encoder = ENCODERS.config_type(name)(size="tiny")
    data = asrtool.load(toy / "exp").config.data
    data = {"input": "waveform", "fbank": replace(data.fbank, rate=16000)}
    return prove.greedy(replace(other(toy, data, encoder=encoder), cmvn=None), "ctc")


def test_the_chunks_of_a_stream_are_those_of_the_options(toy_stream, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(export, "require_packages", lambda: None)
    monkeypatch.setattr(export, "build", lambda recognizer, *_: taken.append(recognizer) or 0.0)
    options = ["--streaming", "--chunk-ms", "160", "--left-chunks", "2"]
    export.main([str(toy_stream / "exp"), "--out", str(tmp_path / "out"), *options])
    (recognizer,) = taken
    assert recognizer.settings.chunk_ms == 160 and recognizer.model.encoder.left_chunks == 2


@pytest.mark.slow
def test_a_streaming_graph_of_two_frame_rates_runs_in_onnxruntime(toy, tmp_path, needs_onnx):
    stems = asrtool.load(toy / "exp").config.model.encoder.downsamplers
    stems = {place: replace(stem, causal=True) for place, stem in stems.items()}
    stems[1] = StridedConvConfig(causal=True, kernel=3)
    recognizer = other(toy, num_layers=2, causal=True, chunk=ChunkConfig(), downsamplers=stems)
    settings = replace(recognizer.settings, chunk_ms=160, left_chunks=2)
    recognizer = replace(recognizer, model=in_chunks(recognizer.model, settings), settings=settings)
    config = ExportConfig(streaming=True, data=toy / "data" / "test", most_points=0.0)
    assert build.build(recognizer, config, toy / "exp" / "vocab", tmp_path) < 1e-4
    facts = json.loads((tmp_path / "export.json").read_text())
    assert facts["streaming"]["chunk_frames"] == 16
    assert facts["streaming"]["caches"]["memories_1_valid"] == [1, 4]
    assert facts["proof"]["model.onnx"]["differing"] == 0
