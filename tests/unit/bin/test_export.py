"""`asrtool export`: the graph gives what PyTorch gives, at any batch size and length; or one
sentence.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import asrtool
from asrtool.bin import export
from asrtool.encoders.conformer import ChunkConfig
from asrtool.errors import UserError
from asrtool.model_folder import build_model
from tests import toy_experiment as toys


def test_missing_packages_are_one_sentence(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "loads", lambda name: name == "onnx")
    with pytest.raises(
        UserError, match=r"export needs onnxscript, onnxruntime, .* " r"'.\[onnx\]'"
    ):
        export.main([str(toy / "exp"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_ctc_head_is_refused(toy, tmp_path):
    recognizer = asrtool.load(toy / "exp")
    del recognizer.model.heads["ctc"]
    with pytest.raises(UserError, match="frame-synchronous head .*model has: none"):
        export.export(recognizer, toy / "exp", tmp_path)


@pytest.fixture
def needs_onnx() -> None:
    for name in export.PACKAGES:
        pytest.importorskip(name, reason="pip install -e '.[onnx]'")


def test_the_features_are_described_so_that_others_can_make_them(toy):
    config = asrtool.load(toy / "exp").config.data.fbank
    facts = export.features_of(config)
    seconds = np.zeros(config.rate)
    frames = 1 + (len(seconds) - facts["frame_length"]) // facts["frame_shift"]
    assert frames == config.num_frames(config.rate)
    assert (facts["sample_scale"], facts["window"], facts["preemphasis"]) == (
        32768.0,
        "povey",
        0.97,
    )
    assert facts["high_hz"] == config.rate / 2 and json.dumps(facts)


def check_graph(file: Path) -> None:
    """Its axes have names, and nothing is said of the values inside."""
    import onnx

    graph = onnx.load(file).graph
    axes = {
        value.name: [axis.dim_param for axis in value.type.tensor_type.shape.dim if axis.dim_param]
        for value in (*graph.input, *graph.output)
    }
    assert axes == {name: list(names) for name, names in export.AXES.items()}
    assert not graph.value_info


@pytest.mark.slow
def test_the_graph_recognises_what_the_model_does(toy, tmp_path, needs_onnx):
    import onnxruntime

    export.main([str(toy / "exp"), "--out", str(tmp_path / "out")])
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["largest difference"] < 1e-4
    check_graph(tmp_path / "out" / "model.onnx")
    recognizer = asrtool.load(toy / "exp")
    plain = replace(recognizer, cmvn=None)  # the graph normalises by itself
    tokens = (tmp_path / "out" / "tokens.txt").read_text().split("\n")
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for text in ("abc de", "a", "bad cab ace dea"):
        features = plain.inputs(toys.sound(text)).numpy()[None]
        log_probs, frames = session.run(
            None, {"inputs": features, "lengths": np.array([features.shape[1]])}
        )
        path = log_probs[0, : frames[0]].argmax(-1).tolist()
        labels = [
            one for one, before in zip(path, [0, *path], strict=False) if one and one != before
        ]
        assert "".join(tokens[label] for label in labels).replace("<space>", " ") == text


@pytest.mark.slow
@pytest.mark.parametrize(
    "change", [{"positions": "relative"}, {"causal": True, "chunk": ChunkConfig()}], ids=str
)
def test_other_encoders_export_too(toy, tmp_path, needs_onnx, change):
    recognizer = asrtool.load(toy / "exp")
    encoder = replace(recognizer.config.model.encoder, **change)
    if "causal" in change:
        stems = {place: replace(stem, causal=True) for place, stem in encoder.downsamplers.items()}
        encoder = replace(encoder, downsamplers=stems)
    config = replace(recognizer.config, model=replace(recognizer.config.model, encoder=encoder))
    torch.manual_seed(0)
    model = build_model(config, recognizer.tokenizer.size).eval()
    assert (
        export.export(replace(recognizer, config=config, model=model), Path(toy / "exp"), tmp_path)
        < 1e-4
    )
