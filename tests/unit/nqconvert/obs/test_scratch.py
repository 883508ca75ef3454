"""Arrays beyond a budget, and Hessians that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from nqconvert.obs.scratch import Scratch, release


def test_arrays_beyond_the_budget_lie_in_files_and_keep_their_content() -> None:
    scratch = Scratch(budget_bytes=1000)
    small, large = scratch.zeros((10, 10)), scratch.zeros((40, 50))
    assert not isinstance(small, np.memmap) and isinstance(large, np.memmap)
    large += np.arange(50)
    release(large)
    release(small)
    np.testing.assert_array_equal(large, np.broadcast_to(np.arange(50), (40, 50)))
    assert not large[0, 0] and large.dtype == np.float64


def test_what_is_forgotten_makes_room() -> None:
    scratch = Scratch(budget_bytes=1000)
    first = scratch.zeros((100,))
    assert isinstance(scratch.zeros((100,)), np.memmap)
    scratch.forget(first)
    assert not isinstance(scratch.zeros((100,)), np.memmap)


def test_copies_stay_where_there_is_room() -> None:
    scratch = Scratch(budget_bytes=100)
    array = np.arange(20, dtype=np.int8)
    assert scratch.kept(array) is array
    wide = np.arange(200, dtype=np.int16)
    kept = scratch.kept(wide)
    assert isinstance(kept, np.memmap) and kept.dtype == np.int16
    np.testing.assert_array_equal(kept, wide)
    assert scratch.kept(np.zeros((0, 5))).shape == (0, 5)


def test_hessians_in_files_give_the_same_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    from nqconvert import load_source
    from nqconvert.obs import surgeon as surgeon_module

    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    rng = np.random.default_rng(0)
    arrays = {"a": rng.normal(size=(24, 30)), "b": rng.normal(size=(30, 8))}
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "b"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 24])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 8])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in arrays.items()],
    )
    source = load_source(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    inputs = rng.normal(size=(60, 24)).astype(np.float32)
    settings = surgeon_module.CalibrationSettings(progress=lambda line: None)
    made = []
    for budget in (1 << 26, 0):
        monkeypatch.setattr(surgeon_module, "_LEAST_BUDGET", budget)
        monkeypatch.setattr(surgeon_module, "largest_hessian_bytes", lambda *given, found=budget: found)
        surgeon = surgeon_module.prepare_surgeon(source, source.tensors, inputs, settings)
        kept = [layer.factors[0][0].factor for layer in surgeon.layers.values()]
        assert all(isinstance(factor, np.memmap) for factor in kept) == (budget == 0)
        made.append(surgeon.operate(0.01))
    for name, tensor in made[0].tensors.items():
        np.testing.assert_array_equal(tensor.decode(), made[1].tensors[name].decode())
