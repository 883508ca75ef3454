"""Arrays beyond a budget, and Hessians that do not fit."""

from __future__ import annotations

import numpy as np
import pytest

from nqconvert.obs import scratch as scratch_module
from nqconvert.obs.scratch import Scratch, is_mapped, release
from nqformat.errors import ConversionError


@pytest.fixture(autouse=True)
def no_small_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch_module, "_SMALL_BYTES", 0)


def test_arrays_beyond_the_budget_lie_in_files_and_keep_their_content() -> None:
    scratch = Scratch(budget_bytes=1000)
    small, large, other = scratch.zeros((10, 10)), scratch.zeros((40, 50)), scratch.zeros((40, 50))
    assert not is_mapped(small) and is_mapped(large) and is_mapped(other[3:5].T)
    large += np.arange(50)
    other += 7
    for array in (large, small, other):
        release(array)
    np.testing.assert_array_equal(large, np.broadcast_to(np.arange(50), (40, 50)))
    assert not large[0, 0] and large.dtype == np.float64 and (other == 7).all() and not small.any()


def test_what_is_forgotten_makes_room() -> None:
    scratch = Scratch(budget_bytes=1000)
    first = scratch.zeros((100,))
    assert is_mapped(scratch.zeros((100,)))
    scratch.forget(first)
    assert not is_mapped(scratch.zeros((100,)))


def test_copies_stay_where_there_is_room() -> None:
    scratch = Scratch(budget_bytes=100)
    array = np.arange(20, dtype=np.int8)
    assert scratch.kept(array) is array
    wide = np.arange(200, dtype=np.int16)
    kept = scratch.kept(wide)
    assert is_mapped(kept) and kept.dtype == np.int16
    np.testing.assert_array_equal(kept, wide)
    assert scratch.kept(np.zeros((0, 5))).shape == (0, 5)


def test_thousands_of_arrays_take_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = Scratch(budget_bytes=0)
    arrays = [scratch.zeros((10, 20), np.float32) for _ in range(3000)]
    for number, array in enumerate(arrays):
        array[...] = number
    assert all((array == number).all() for number, array in enumerate(arrays))
    assert len({id(array.base) for array in arrays}) == 1
    monkeypatch.setattr(scratch_module, "_SMALL_BYTES", 1 << 10)
    assert not is_mapped(scratch.zeros((10, 20), np.float32))


def test_a_full_disk_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(ConversionError, match="No space left on device; set TMPDIR"):
        Scratch(budget_bytes=0).zeros((10, 10))


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
        assert all(is_mapped(factor) for factor in kept) == (budget == 0)
        made.append(surgeon.operate(0.01))
    for name, tensor in made[0].tensors.items():
        np.testing.assert_array_equal(tensor.decode(), made[1].tensors[name].decode())
