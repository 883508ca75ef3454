"""The container's own bytes on LeNet-300-100: everything but coded numbers, codebooks and raw values."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import nqconvert
import nqformat

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

BUDGET_BYTES = 600


def lenet_300_100() -> onnx.ModelProto:
    """Random weights with the largest 8 % kept, as magnitude pruning leaves them."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    arrays = {}
    for layer, (n_out, n_in) in enumerate([(300, 784), (100, 300), (10, 100)], start=1):
        weight = rng.laplace(scale=1 / np.sqrt(n_in), size=(n_out, n_in)).astype(np.float32)
        weight[np.abs(weight) < np.quantile(np.abs(weight), 0.92)] = 0
        arrays[f"fc{layer}.weight"] = weight
        arrays[f"fc{layer}.bias"] = rng.normal(scale=0.05, size=n_out).astype(np.float32)
    nodes = []
    value = "image"
    for layer in (1, 2, 3):
        result = "logits" if layer == 3 else f"hidden{layer}"
        inputs = [value, f"fc{layer}.weight", f"fc{layer}.bias"]
        nodes.append(helper.make_node("Gemm", inputs, [result], transB=1))
        if layer < 3:
            nodes.append(helper.make_node("Relu", [result], [f"active{layer}"]))
            value = f"active{layer}"
    graph = helper.make_graph(
        nodes,
        "lenet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 784])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_lenet_300_100_stays_within_the_overhead_budget(tmp_path: Path) -> None:
    path = tmp_path / "lenet.nqz"
    report = nqconvert.convert(lenet_300_100(), path, preset="deep-compression")
    file = report.file
    assert file.file_bytes == path.stat().st_size
    parts = file.header + file.checksums + file.directory + file.metadata + file.graph + file.padding
    assert abs(file.overhead - parts) <= 1
    assert file.overhead <= BUDGET_BYTES
    with nqformat.safe_open(path) as opened:
        layouts = [opened.info(f"fc{layer}.weight").layout for layer in (1, 2, 3)]
    assert layouts == [nqformat.Layout.SPARSE] * 3
