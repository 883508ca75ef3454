from __future__ import annotations

import numpy as np
import onnx
import onnx.reference
import onnxruntime
import pytest
from onnx import TensorProto, helper

import nqformat
from nqconvert.export import export_onnx


def _quantized(rng, *shape, n_entries=16, dtype=nqformat.DType.FLOAT32):
    values = np.unique(rng.normal(size=4 * n_entries).astype(np.float16))[:n_entries].astype(np.float32)
    indices = rng.integers(0, n_entries, size=shape).astype(np.uint8 if n_entries <= 256 else np.uint16)
    return nqformat.CodebookTensor(indices=indices, codebook=nqformat.Codebook(values=values), dtype=dtype)


def _graph(nodes, inputs, outputs, *, opset=20, ir_version=9, initializers=()):
    infos = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    results = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()
    ]
    graph = helper.make_graph(nodes, "test", infos, results, list(initializers))
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version).SerializeToString()


def _weights_of(model):
    """Evaluate what the exported graph computes from initializers alone, by the reference evaluator."""
    constants = {t.name for t in model.graph.initializer}
    kept = []
    for node in model.graph.node:
        if node.input and set(node.input) <= constants:
            constants.update(node.output)
            kept.append(node)
    outputs = [helper.make_tensor_value_info(name, 0, None) for node in kept for name in node.output]
    graph = helper.make_graph(kept, "w", [], outputs, list(model.graph.initializer))
    evaluator = onnx.reference.ReferenceEvaluator(
        helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)
    )
    computed = dict(zip([o.name for o in outputs], evaluator.run(None, {}), strict=True))
    return computed | {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.fixture
def quantized():
    return _quantized


@pytest.fixture
def make_graph():
    return _graph


@pytest.fixture
def weights_of():
    return _weights_of


@pytest.fixture
def export(tmp_path):
    """Write tensors and a graph to a .nqz file, export it, and return the report and the parsed model."""

    def run(tensors, graph, **options):
        source, target = tmp_path / "m.nqz", tmp_path / "m.onnx"
        nqformat.save_file(tensors, source, graph=graph)
        report = export_onnx(source, target, **options)
        leftovers = {path.name for path in tmp_path.iterdir()} - {"m.nqz", "m.onnx", "m.onnx.data"}
        assert not leftovers
        return report, onnx.load(target)

    return run


@pytest.fixture
def run_file():
    def run(path, feeds):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return session.run(None, feeds)

    return run


@pytest.fixture
def two_layers(rng):
    """Graph and tensors of x @ w1 -> relu -> @ w2 + b, both weights quantized."""
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b"], ["y"], transB=1),
    ]
    tensors = {
        "w1": _quantized(rng, 40, 33),
        "w2": _quantized(rng, 10, 33, n_entries=50),
        "b": rng.normal(size=10).astype(np.float32),
    }
    return tensors, _graph(nodes, {"x": (TensorProto.FLOAT, ("n", 40))}, {"y": ("n", 10)})
