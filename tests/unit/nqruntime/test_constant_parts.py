"""Weights put together of parts of others."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

import nqformat
from nqformat import safe_open
from nqruntime.constant_parts import PartsConstant
from nqruntime.constants import ArrayConstant, StoredConstant
from nqruntime.symbols import read_matrix

from .conftest import build_model, quantized, run_in_ort
from .test_segments import noise


@pytest.fixture(params=[0.1, 0.9])
def stored(request, tmp_path):
    """Return a quantized tensor of a file as a constant, sparse or dense, and its values."""
    tensor = quantized((12, 5), request.param, 9)
    nqformat.save_file({"w": tensor}, tmp_path / "w.nqz")
    with safe_open(tmp_path / "w.nqz") as file:
        yield StoredConstant(file, "w"), tensor.decode()


def reordered(constant):
    whole = PartsConstant.of(constant)
    return PartsConstant.joined((1, 12, 5), [whole.part(5 * k, 5 * (k + 4), (4, 5)) for k in (8, 0, 4)])


def test_parts_of_one_tensor_stay_quantized(stored):
    constant, values = stored
    expected = np.concatenate([values[8:], values[:4], values[4:8]])
    found = reordered(constant)
    assert found.shape == (1, 12, 5)
    np.testing.assert_array_equal(found.array()[0], expected)
    weights = read_matrix(found, (12, 5))
    assert weights.symbols is not None
    np.testing.assert_array_equal(weights.detached().decoded(), expected)
    part = found.part(5 * 3, 5 * 9, (6, 5))
    np.testing.assert_array_equal(read_matrix(part, (6, 5)).detached().decoded(), expected[3:9])


def test_axes_of_parts_are_permuted(stored):
    constant, values = stored
    expected = np.concatenate([values[8:], values[:4], values[4:8]])
    turned = reordered(constant).transposed((2, 1, 0))
    assert turned.shape == (5, 12, 1)
    np.testing.assert_array_equal(turned.array()[..., 0], expected.T)
    assert turned.packed() is not None
    np.testing.assert_array_equal(turned.transposed((2, 1, 0)).array()[0], expected)
    assert reordered(constant).transposed((1, 0, 2)).shape == (12, 1, 5)


def test_parts_of_several_tensors_are_decoded(stored):
    constant, values = stored
    other = ArrayConstant(noise((2, 5)))
    found = PartsConstant.joined((14, 5), [constant, other])
    assert found.packed() is None
    np.testing.assert_array_equal(found.array(), np.concatenate([values, other.array()]))
    np.testing.assert_array_equal(found.part(60, 70, (2, 5)).array(), other.array())
    assert found.part(0, 60, (12, 5)).packed() is not None


BAD = {
    "axis": helper.make_node("Slice", ["w", "one", "two", "nine"], ["p"]),
    "bounds": helper.make_node("Slice", ["w", "two", "one", "zero"], ["p"]),
    "step": helper.make_node("Slice", ["w", "two", "zero", "zero", "minus"], ["p"]),
    "inner": helper.make_node("Slice", ["w", "one", "two", "one"], ["p"]),
}


@pytest.mark.parametrize("name", BAD)
def test_other_slices_of_weights_are_left_to_numpy(name, save_model):
    from nqformat.errors import FormatError
    from nqruntime import InferenceSession

    numbers = {"zero": 0, "one": 1, "two": 2, "nine": 9, "minus": -1}
    constants = {n: np.array([value]) for n, value in numbers.items()}
    nodes = [BAD[name], helper.make_node("Shape", ["x"], ["s"]), helper.make_node("Identity", ["p"], ["y"])]
    model = build_model(nodes, {"x": (np.float32, (2,))}, ["y", "s"], constants)
    tensors, feeds = {"w": quantized((12, 5), 0.3, 9)}, {"x": noise(2)}
    with_error = name == "axis"
    try:
        with InferenceSession(save_model(model, tensors), engine="native") as session:
            found = session.run(None, feeds)[0]
    except FormatError:
        assert with_error
        return
    assert not with_error
    np.testing.assert_array_equal(found, run_in_ort(model, feeds, tensors)[0])
