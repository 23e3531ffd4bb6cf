"""A graph from samples in onnxruntime-web, as a page runs it: on WebAssembly, under node."""

from __future__ import annotations

import json

import numpy as np
import pytest

import asrtool
from asrtool.bin import export
from asrtool.export import prove
from asrtool.export.graph import session
from tests import toy_experiment
from tests.interop import node

pytestmark = pytest.mark.interop


def test_a_graph_from_samples_runs_in_a_browsers_runtime(toy, tmp_path):
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name, reason="pip install -e '.[onnx]'")
    packages = node.install(tmp_path / "npm", "onnxruntime-web")
    out = tmp_path / "out"
    export.main([str(toy / "exp"), "--from-samples", "--int8", "--out", str(out)])
    recognizer = prove.greedy(asrtool.load(toy / "exp"), "ctc")
    for name in ("model.onnx", "model.int8.onnx"):
        for text in ("abc de", "bad cab ace dea"):
            samples = toy_experiment.sound(text)
            samples.tofile(tmp_path / "samples")
            found = json.loads(node.run(packages, "log_probs.js", out / name, tmp_path / "samples"))
            log_probs = np.array(found["log_probs"], np.float32).reshape(found["dims"])
            expected, frames = session(out / name).run(
                None, {"inputs": samples[None], "lengths": np.array([len(samples)])}
            )
            assert found["frames"] == frames[0]
            difference = np.abs(log_probs - expected)[0, : frames[0]].max()
            assert difference < (1e-3 if name == "model.onnx" else 0.2)
            assert prove.best_path(recognizer, log_probs[0, : frames[0]]) == text
