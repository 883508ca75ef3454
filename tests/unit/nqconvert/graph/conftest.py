from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper


def _make_model(nodes, inputs, outputs, initializers=None, *, opset=17, ir_version=9):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (initializers or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def _run_model(model, feeds):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feeds)


def _restored(slim):
    model = onnx.ModelProto.FromString(slim.graph)
    arrays = dict(slim.tensors)
    arrays |= {name: view.assemble(slim.tensors) for name, view in slim.views.items()}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


@pytest.fixture
def make_model():
    return _make_model


@pytest.fixture
def run_model():
    return _run_model


@pytest.fixture
def restored():
    """Put the tensors of a SlimGraph back into its graph."""
    return _restored


@pytest.fixture
def rng():
    return np.random.default_rng(7)
