"""Graphs of float16 and bfloat16 on the native engine: float32 inside, rounded once at the outputs."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from nqformat import AffineTensor, DType, RawTensor
from nqformat.errors import UnsupportedFeatureError
from nqformat.kernels import compiled
from nqruntime import InferenceSession
from nqruntime.kernels.library import COMPUTE

from .conftest import quantized, run_in_ort

RNG = np.random.default_rng(4)


@pytest.fixture(autouse=True, params=["numba", "numpy"])
def kernels(request, monkeypatch):
    if request.param == "numba" and compiled(COMPUTE, 0, worth_loading=0, worth_compiling=0) is None:
        pytest.skip("no compiled kernels on this machine")
    monkeypatch.setenv("NQFORMAT_KERNELS", request.param)
    return request.param


def model_of(nodes, shape, kind=TensorProto.FLOAT16, result=TensorProto.FLOAT16, inline=()):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", result, None)],
        list(inline),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_a_convolution_network_of_float16_runs_in_machine_code(save_model, kernels):
    nodes = [
        helper.make_node("Conv", ["x", "c"], ["a"], kernel_shape=[3, 3], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Flatten", ["b"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["m"]),
        helper.make_node("Add", ["m", "bias"], ["y"]),
    ]
    tensors = {
        "c": replace(quantized((8, 4, 3, 3), 0.2, 16), dtype=DType.FLOAT16),
        "w": AffineTensor(
            k=RNG.integers(-7, 8, (8 * 36, 10)).astype(np.int32), step=0.013671875, dtype=DType.FLOAT16
        ),
    }
    bias = numpy_helper.from_array(RNG.normal(size=10).astype(np.float16), "bias")
    model = model_of(nodes, [2, 4, 6, 6], inline=[bias])
    session = InferenceSession(save_model(model, tensors), engine="native")
    x = RNG.normal(size=(2, 4, 6, 6)).astype(np.float16)
    found = session.run(None, {"x": x})[0]
    assert found.dtype == np.float16
    expected = run_in_ort(model, {"x": x}, tensors)[0].astype(np.float32)
    np.testing.assert_allclose(found.astype(np.float32), expected, atol=4e-3 * np.abs(expected).max())
    chosen = session.explain(timed=True)
    assert any("planes" in row.kernel for row in chosen) == (kernels == "numba")
    with pytest.raises(TypeError, match="float16"):
        session.run(None, {"x": x.astype(np.float32)})


def test_bfloat16_comes_and_goes_as_such(save_model):
    weight = RNG.normal(size=(40, 30)).astype(ml_dtypes.bfloat16)
    tensors = {"w": RawTensor(bits=weight.view(np.uint16), dtype=DType.BFLOAT16)}
    model = model_of(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], [3, 40], TensorProto.BFLOAT16, TensorProto.BFLOAT16
    )
    x = RNG.normal(size=(3, 40)).astype(ml_dtypes.bfloat16)
    [found] = InferenceSession(save_model(model, tensors), engine="native").run(None, {"x": x})
    assert found.dtype == ml_dtypes.bfloat16
    expected = x.astype(np.float32) @ weight.astype(np.float32)
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=5e-3, atol=1e-4)


@pytest.mark.parametrize("to", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_casts_round_to_half_precision(to, save_model):
    nodes = [helper.make_node("Cast", ["x"], ["h"], to=to), helper.make_node("Cast", ["h"], ["y"], to=1)]
    model = model_of(nodes, [5], TensorProto.FLOAT, TensorProto.FLOAT)
    x = np.array([1, 1 + 2**-12, 3.14159, -1e9, np.nan], dtype=np.float32)
    dtype = np.float16 if to == TensorProto.FLOAT16 else ml_dtypes.bfloat16
    with np.errstate(over="ignore"):
        expected = x.astype(dtype).astype(np.float32)
    [found] = InferenceSession(save_model(model), engine="native").run(None, {"x": x})
    np.testing.assert_array_equal(found, expected)


def test_outputs_of_unknown_type_are_refused(save_model):
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"])], [3, 40], TensorProto.FLOAT16)
    model.graph.output[0].ClearField("type")
    tensors = {"w": replace(quantized((40, 30), 0.2, 16), dtype=DType.FLOAT16)}
    with pytest.raises(UnsupportedFeatureError, match="'y' has none declared"):
        InferenceSession(save_model(model, tensors), engine="native")


def test_bfloat16_outputs_need_ml_dtypes(save_model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ml_dtypes", None)
    model = model_of(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)],
        [3],
        TensorProto.FLOAT,
        TensorProto.BFLOAT16,
    )
    with pytest.raises(UnsupportedFeatureError, match="ml_dtypes"):
        InferenceSession(save_model(model), engine="native")
