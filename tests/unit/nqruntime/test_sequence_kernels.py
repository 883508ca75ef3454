"""Kernels for transformers against NumPy in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest

from nqformat.kernels import compiled
from nqruntime.kernels import blocks
from nqruntime.kernels.library import COMPUTE
from nqruntime.packing import sequences
from nqruntime.packing.areas import address, aligned
from nqruntime.packing.sequences import Formula, Operand, Vectors

_erf = np.vectorize(math.erf)


@pytest.fixture(scope="module")
def library():
    found = compiled(COMPUTE, 0, worth_loading=0, worth_compiling=0)
    if found is None:
        pytest.skip("no compiled kernels on this machine")
    return found


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def steps_of(array):
    return [step // 4 for step in array.strides]


def compute(library, first, formula, second=None):
    """Run the kernel on arrays of four axes that broadcast."""
    shape = np.broadcast_shapes(first.shape, () if second is None else second.shape)
    out = np.full(shape, np.nan, dtype=np.float32)
    operands = []
    for array in (first, second):
        if array is None:
            operands.append(None)
            continue
        wide = np.broadcast_to(array, shape)
        operands.append(Operand(address=address(wide), steps=steps_of(wide)))
    target = Operand(address=address(out), steps=steps_of(out))
    block = sequences.elementwise(shape, operands[0], operands[1], target, formula)
    assert library.run(blocks.ELEMENTWISE, address(block)) == 0
    return out


def all_magnitudes():
    """Return every 4001st float, of both signs, with infinities and NaN."""
    bits = np.arange(0, 0x7F800000, 4001, dtype=np.uint32)
    positive = bits.view(np.float32)
    special = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 88.7, -88.7, 103, -104], dtype=np.float32)
    return np.concatenate([positive, -positive, special])


EXACT = {
    "EXPONENTIAL": np.exp,
    "TANH": np.tanh,
    "SIGMOID": lambda x: np.where(x < 0, np.exp(np.minimum(x, 0)), 1) / (1 + np.exp(-np.abs(x))),
    "ERF": _erf,
    "SQUARE_ROOT": np.sqrt,
    "RECIPROCAL": lambda x: 1 / x,
    "ABSOLUTE": np.abs,
    "NEGATIVE": np.negative,
    "ELU": lambda x: np.where(x < 0, np.expm1(np.minimum(x, 0)), x),
}
LARGEST_ERROR = 4e-7
LARGEST_DENORMAL_ERROR = 3e-39


@pytest.mark.parametrize("name", EXACT)
def test_functions_are_right_over_all_magnitudes(library, name):
    x = all_magnitudes()
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.float64))
        expected = exact.astype(np.float32)
        found = compute(library, x.reshape(1, 1, 1, -1), Formula(function=getattr(blocks, name)))[0, 0, 0]
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    beyond = np.maximum(np.abs(found[finite] - exact[finite]) - LARGEST_DENORMAL_ERROR, 0)
    error = beyond / np.maximum(np.abs(exact[finite]), 1.2e-38)
    assert error.max() < LARGEST_ERROR
    assert np.array_equal(
        np.signbit(found[finite & (expected != 0)]), (expected < 0)[finite & (expected != 0)]
    )


OTHER = {
    "GELU": lambda x: x / 2 * (1 + _erf(x / math.sqrt(2))),
    "GELU_TANH": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "SILU": lambda x: x / (1 + np.exp(-1.5 * x)),
    "HARD_SIGMOID": lambda x: np.clip(1.5 * x + 0.25, 0, 1),
    "HARD_SWISH": lambda x: x * np.clip(1.5 * x + 0.25, 0, 1),
    "LEAKY_RELU": lambda x: np.where(x < 0, 1.5 * x, x),
}


@pytest.mark.parametrize("name", OTHER)
def test_functions_with_parameters(library, name):
    x = np.concatenate([np.linspace(-12, 12, 1001), noise(30)]).astype(np.float32)
    formula = Formula(function=getattr(blocks, name), alpha=1.5, beta=0.25)
    found = compute(library, x.reshape(1, 1, 1, -1), formula)[0, 0, 0]
    np.testing.assert_allclose(found, OTHER[name](x.astype(np.float64)), rtol=1e-6, atol=1e-6)


OPERATIONS = {
    "ADD": np.add,
    "SUBTRACT": np.subtract,
    "SUBTRACT_FIRST": lambda x, y: y - x,
    "MULTIPLY": np.multiply,
    "DIVIDE": np.divide,
    "DIVIDE_BY_FIRST": lambda x, y: y / x,
    "SMALLEST": np.minimum,
    "LARGEST": np.maximum,
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("second", [(2, 3, 5, 37), (1, 3, 1, 37), (2, 1, 5, 1), (1, 1, 1, 1)])
def test_operations_of_values_that_broadcast(library, name, second):
    x, y = noise((2, 3, 5, 37)), noise(second, 1)
    x[0, 0, 0, 3] = np.nan
    formula = Formula(operation=getattr(blocks, name), scale=2.0)
    np.testing.assert_allclose(compute(library, x, formula, y), OPERATIONS[name](2 * x, y), rtol=1e-6)


def test_values_that_lie_apart_are_copied(library):
    x = noise((5, 37, 3, 8))
    view = x.transpose(2, 3, 0, 1)[:, ::2]
    np.testing.assert_array_equal(compute(library, view, Formula()), view)
    np.testing.assert_array_equal(compute(library, view, Formula(low=-0.5, high=0.5)), view.clip(-0.5, 0.5))


@pytest.mark.parametrize("columns", [1, 15, 16, 64, 100])
@pytest.mark.parametrize("with_addend", [False, True])
def test_softmax(library, columns, with_addend):
    x = noise((2, 3, 4, columns)) * 10
    mask = np.where(noise((2, 1, 4, columns), 1) > 0, 0, -np.inf).astype(np.float32)
    mask[..., 0] = 0
    out = np.full(x.shape, np.nan, dtype=np.float32)
    addend = Operand(address=address(mask), steps=steps_of(np.broadcast_to(mask, x.shape)))
    block = sequences.softmax_rows(
        x.shape,
        Vectors(address=address(x), pitch=columns),
        addend if with_addend else None,
        Vectors(address=address(out), pitch=columns),
        0.3,
    )
    assert library.run(blocks.SOFTMAX_ROWS, address(block)) == 0
    exact = 0.3 * x.astype(np.float64) + (mask if with_addend else 0)
    exact = np.exp(exact - exact.max(-1, keepdims=True))
    np.testing.assert_allclose(out, exact / exact.sum(-1, keepdims=True), rtol=2e-6, atol=1e-12)


def test_softmax_of_rows_without_a_largest_value(library):
    x = np.zeros((1, 1, 3, 20), dtype=np.float32)
    x[0, 0, 0] = -np.inf
    x[0, 0, 1, 2] = np.nan
    out = np.zeros_like(x)
    source, target = (Vectors(address=address(array), pitch=20) for array in (x, out))
    block = sequences.softmax_rows(x.shape, source, None, target, 1.0)
    assert library.run(blocks.SOFTMAX_ROWS, address(block)) == 0
    assert np.isnan(out[0, 0, :2]).all()
    np.testing.assert_allclose(out[0, 0, 2], 1 / 20, rtol=1e-6)


@pytest.mark.parametrize("columns", [1, 15, 17, 384])
@pytest.mark.parametrize("is_centred", [False, True])
@pytest.mark.parametrize("with_addend", [False, True])
def test_normalization(library, columns, is_centred, with_addend):
    x, y = noise((5, columns)) + 3, noise((5, columns + 3), 1)
    factors, bias = noise(columns, 2), noise(columns, 3)
    out = np.full((5, columns + 1), np.nan, dtype=np.float32)
    block = sequences.normal_rows(
        x.shape,
        Vectors(address=address(x), pitch=columns),
        Vectors(address=address(y), pitch=columns + 3) if with_addend else None,
        Vectors(address=address(out), pitch=columns + 1),
        factors=address(factors),
        bias=address(bias),
        epsilon=1e-3,
        is_centred=is_centred,
    )
    assert library.run(blocks.NORMAL_ROWS, address(block)) == 0
    exact = x.astype(np.float64) + (y[:, :columns] if with_addend else 0)
    exact = exact - (exact.mean(1, keepdims=True) if is_centred else 0)
    exact = exact / np.sqrt((exact**2).mean(1, keepdims=True) + 1e-3) * factors + bias
    np.testing.assert_allclose(out[:, :columns], exact, rtol=1e-5, atol=1e-5)
    assert np.isnan(out[:, columns]).all()


def test_means_of_rows(library):
    x = noise((3, 7, 40))
    out = np.full((3, 37), np.nan, dtype=np.float32)
    source = Operand(address=address(x), steps=(7 * 40, 40, 1))
    target = Vectors(address=address(out), pitch=37)
    block = sequences.average_rows((3, 7, 37), source, target, factor=1 / 7)
    assert library.run(blocks.AVERAGE_ROWS, address(block)) == 0
    np.testing.assert_allclose(out, x[:, :, :37].astype(np.float64).mean(1), rtol=1e-5, atol=1e-6)


SHAPES = [(1, 1, 1), (3, 5, 7), (8, 32, 32), (13, 17, 33), (64, 64, 70)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("is_transposed", [False, True])
def test_products_of_pairs_of_matrices(library, shape, is_transposed):
    rows, inputs, columns = shape
    first = noise((2, rows, 3, inputs)).transpose(0, 2, 1, 3)[:, None]
    second = noise((2, columns, inputs) if is_transposed else (2, inputs, columns), 1)[:, None, None]
    second = second.swapaxes(-1, -2) if is_transposed else second
    out = np.full((2, 1, rows, 3, columns), np.nan, dtype=np.float32).transpose(0, 1, 3, 2, 4)
    wide = np.broadcast_to(second, (2, 1, 3, inputs, columns))
    panel = aligned(sequences.panel_floats(inputs), np.float32)
    operands = [Operand(address=address(array), steps=steps_of(array)) for array in (first, wide, out)]
    if inputs == columns == 1:
        operands[1] = Operand(address=address(wide), steps=(*steps_of(wide)[:4], 1))
    block = sequences.batched((2, 1, 3), shape, operands, address(panel), 0.5)
    assert library.run(blocks.BATCHED, address(block)) == 0
    exact = 0.5 * first.astype(np.float64) @ second.astype(np.float64)
    np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-5)
