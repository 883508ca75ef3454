from __future__ import annotations

import numpy as np
import pytest

from nqruntime.numpy_products import expand_symbols, multiply_columns, multiply_palette, multiply_rows

SHAPES = [(1, 1), (7, 5), (300, 257), (4, 1000)]


def sparse_parts(shape, seed, *, by_rows, n_entries=9):
    rng = np.random.default_rng(seed)
    codebook = rng.normal(size=n_entries).astype(np.float32)
    symbols = rng.integers(0, n_entries, size=shape)
    kept = rng.random(shape) < 0.2
    dense = np.where(kept, codebook[symbols], 0).astype(np.float32)
    grid, chosen = (kept, symbols) if by_rows else (kept.T, symbols.T)
    starts = np.concatenate([[0], np.cumsum(grid.sum(axis=1))]).astype(np.int64)
    minors = np.nonzero(grid)[1].astype(np.uint16)
    return (starts, minors, chosen[grid].astype(np.uint8), codebook), dense


@pytest.mark.parametrize("multiply", [multiply_rows, multiply_columns])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 3, 64])
def test_sparse_products_equal_those_of_the_dense_matrix(multiply, shape, n):
    parts, dense = sparse_parts(shape, 5, by_rows=multiply is multiply_rows)
    right = np.random.default_rng(6).normal(size=(shape[1], n)).astype(np.float32)
    expected = dense.astype(np.float64) @ right
    np.testing.assert_allclose(multiply(*parts, right, shape[0]), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 70])
def test_products_with_matrices_that_hold_nothing_are_zero(n):
    for multiply, n_major in ((multiply_rows, 6), (multiply_columns, 4)):
        nothing = (np.zeros(n_major + 1, np.int64), np.zeros(0, np.uint16), np.zeros(0, np.uint8))
        product = multiply(*nothing, np.ones(1, np.float32), np.ones((4, n), np.float32), 6)
        np.testing.assert_array_equal(product, np.zeros((6, n), np.float32))


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (9, 1030), (64, 7)])
@pytest.mark.parametrize("n", [1, 5])
def test_palette_products_equal_those_of_the_dense_matrix(shape, n):
    rng = np.random.default_rng(8)
    codebook = rng.normal(size=20).astype(np.float32)
    symbols = rng.integers(0, 20, size=shape).astype(np.uint8)
    right = rng.normal(size=(shape[1], n)).astype(np.float32)
    expected = codebook.astype(np.float64)[symbols] @ right
    np.testing.assert_allclose(multiply_palette(symbols, codebook, right), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_expanded_symbols_are_entries_of_the_codebook(dtype):
    rng = np.random.default_rng(9)
    codebook = rng.normal(size=200).astype(np.float32)
    symbols = rng.integers(0, 200, size=(13, 17)).astype(dtype)
    assert expand_symbols(symbols, codebook).tobytes() == codebook[symbols].tobytes()
