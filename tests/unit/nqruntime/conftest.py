"""Small models as .nqz files, and what ONNX Runtime makes of them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import nqformat
from nqformat import Codebook, CodebookTensor


def quantized(shape, density, n_entries, seed=0):
    """Return a CodebookTensor whose entry 0 is zero, with about `density` of nonzeros."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(1, n_entries, size=shape)
    indices = np.where(rng.random(shape) < density, levels, 0)
    values = rng.normal(size=n_entries).astype(np.float32)
    values[0] = 0.0
    indices = indices.astype(np.uint8 if n_entries <= 256 else np.uint16)
    return CodebookTensor(indices=indices, codebook=Codebook(values=values))


def build_model(nodes, inputs, outputs, initializers=None, *, opset=17, ir_version=8):
    """Return a ModelProto; `inputs` maps names to (dtype, shape)."""
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)
            for name, (dtype, shape) in inputs.items()
        ],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (initializers or {}).items()],
    )
    for value in graph.output:
        value.ClearField("type")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def run_in_ort(model, feeds, tensors=None):
    """Run a model in ONNX Runtime with the decoded `tensors` as initializers."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    for name, tensor in (tensors or {}).items():
        array = tensor if isinstance(tensor, np.ndarray) else tensor.decode()
        whole.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        whole.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def assert_close(actual, expected, tolerance=1e-5):
    """Require the same dtype and shape, and a difference below `tolerance` of the largest magnitude."""
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if expected.dtype.kind != "f":
        np.testing.assert_array_equal(actual, expected)
        return
    largest = np.abs(expected[np.isfinite(expected)]).max(initial=1e-30)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * largest)


@pytest.fixture
def save_model(tmp_path):
    """Return a function that writes a model and tensors to a .nqz file and returns its path."""

    def save(model, tensors=None, metadata=None):
        path = tmp_path / "model.nqz"
        nqformat.save_file(tensors or {}, path, graph=model.SerializeToString(), metadata=metadata)
        return path

    return save
