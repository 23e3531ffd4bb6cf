"""8-bit weights say the same on every processor."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from asrtool.export.quantize import quantize  # noqa: E402 - after the check for onnx


def test_two_products_of_any_activations_fit_into_16_bits(tmp_path):
    """As kernels for AVX2 add them: activations are up to 255."""
    weights = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    shapes = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2, size])
        for name, size in (("x", 8), ("y", 4))
    ]
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph(
        [node], "g", shapes[:1], shapes[1:], [onnx.numpy_helper.from_array(weights, "w")]
    )
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset]), tmp_path / "model.onnx")
    quantize(tmp_path / "model.onnx", tmp_path / "model.int8.onnx")
    found = [
        onnx.numpy_helper.to_array(part).astype(int)
        for part in onnx.load(tmp_path / "model.int8.onnx").graph.initializer
        if part.data_type == onnx.TensorProto.INT8 and len(part.dims) == 2
    ]
    assert len(found) == 1 and found[0].shape == (8, 4)
    assert 2 * 255 * abs(found[0]).max() < 1 << 15
    assert abs(found[0]).max() > 50
