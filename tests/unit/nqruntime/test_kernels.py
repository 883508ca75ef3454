from __future__ import annotations

import math

import numpy as np
import pytest

from nqruntime import kernels
from nqruntime.kernels import Workers, expand_symbols, multiply_columns, multiply_palette, multiply_rows

pytest.importorskip("numba")

SHAPES = [(1, 1), (7, 5), (300, 257), (4, 1000)]


def sparse_parts(shape, seed, *, by_rows, n_entries=9, minor=np.uint16):
    rng = np.random.default_rng(seed)
    codebook = rng.normal(size=n_entries).astype(np.float32)
    symbols = rng.integers(0, n_entries, size=shape)
    kept = rng.random(shape) < 0.2
    dense = np.where(kept, codebook[symbols], 0).astype(np.float32)
    grid, chosen = (kept, symbols) if by_rows else (kept.T, symbols.T)
    starts = np.concatenate([[0], np.cumsum(grid.sum(axis=1))]).astype(np.int64)
    minors = np.nonzero(grid)[1].astype(minor)
    dtype = np.uint8 if n_entries <= 256 else np.uint16
    return (starts, minors, chosen[grid].astype(dtype), codebook), dense


@pytest.fixture(params=[None, 1, 2], ids=["numpy", "numba", "numba with 2 threads"])
def workers(request):
    if request.param is None:
        yield None
        return
    pool = Workers(request.param)
    yield pool
    pool.close()


@pytest.mark.parametrize("multiply", [multiply_rows, multiply_columns])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [1, 3, 64])
def test_sparse_products_equal_those_of_the_dense_matrix(multiply, shape, n, workers):
    parts, dense = sparse_parts(shape, 5, by_rows=multiply is multiply_rows)
    right = np.random.default_rng(6).normal(size=(shape[1], n)).astype(np.float32)
    product = multiply(*parts, right, shape[0], workers)
    expected = dense.astype(np.float64) @ right
    np.testing.assert_allclose(product, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("multiply", [multiply_rows, multiply_columns])
@pytest.mark.parametrize(("n_entries", "minor"), [(300, np.uint16), (9, np.uint32), (300, np.uint32)])
def test_wide_symbols_and_wide_coordinates_have_kernels(multiply, n_entries, minor, workers):
    parts, dense = sparse_parts(
        (20, 30), 1, by_rows=multiply is multiply_rows, n_entries=n_entries, minor=minor
    )
    right = np.random.default_rng(2).normal(size=(30, 2)).astype(np.float32)
    np.testing.assert_allclose(multiply(*parts, right, 20, workers), dense @ right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [1, 70])
def test_products_with_matrices_that_hold_nothing_are_zero(n, workers):
    for multiply, n_major in ((multiply_rows, 6), (multiply_columns, 4)):
        parts = (
            np.zeros(n_major + 1, np.int64),
            np.zeros(0, np.uint16),
            np.zeros(0, np.uint8),
            np.ones(1, np.float32),
        )
        product = multiply(*parts, np.ones((4, n), np.float32), 6, workers)
        np.testing.assert_array_equal(product, np.zeros((6, n), np.float32))


def test_zeros_in_a_vector_are_skipped_without_changing_the_result():
    parts, dense = sparse_parts((50, 80), 3, by_rows=False)
    right = np.random.default_rng(4).normal(size=(80, 1)).astype(np.float32)
    right[::3] = 0
    np.testing.assert_allclose(
        multiply_columns(*parts, right, 50, Workers(1)), dense @ right, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(1, 1), (3, 4), (9, 1030), (64, 7)])
@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize("numba", [False, True])
def test_palette_products_equal_those_of_the_dense_matrix(shape, n, numba):
    rng = np.random.default_rng(8)
    codebook = rng.normal(size=20).astype(np.float32)
    symbols = rng.integers(0, 20, size=shape).astype(np.uint8)
    right = rng.normal(size=(shape[1], n)).astype(np.float32)
    expected = codebook.astype(np.float64)[symbols] @ right
    np.testing.assert_allclose(
        multiply_palette(symbols, codebook, right, numba=numba), expected, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_expanded_symbols_have_the_same_bits_on_both_paths(dtype):
    rng = np.random.default_rng(9)
    codebook = rng.normal(size=200).astype(np.float32)
    symbols = rng.integers(0, 200, size=(13, 17)).astype(dtype)
    for numba in (False, True):
        expanded = expand_symbols(symbols, codebook, numba=numba)
        assert expanded.tobytes() == codebook[symbols].tobytes()


def test_results_do_not_depend_on_the_number_of_threads(monkeypatch):
    monkeypatch.setattr("nqruntime.kernels.workers._WORTH_THREADS", 0)
    parts, _ = sparse_parts((40, 60), 10, by_rows=True)
    right = np.random.default_rng(11).normal(size=(60, 2000)).astype(np.float32)
    results = [multiply_rows(*parts, right, 40, Workers(threads)).tobytes() for threads in (1, 2, 5)]
    assert len(set(results)) == 1


def test_tiles_cover_every_column_once(monkeypatch):
    monkeypatch.setattr("nqruntime.kernels.workers._WORTH_THREADS", 0)
    seen = []
    Workers(3).run_tiles(lambda begin, end: seen.extend(range(begin, end)), 1000, 128, work_a_column=1)
    assert sorted(seen) == list(range(1000))


def spoiled_parts(**changes):
    parts, _ = sparse_parts((6, 5), 12, by_rows=True)
    named = dict(zip(("starts", "minors", "symbols", "codebook"), (p.copy() for p in parts), strict=True))
    for name, (place, value) in changes.items():
        named[name][place] = value
    return tuple(named.values())


@pytest.mark.parametrize(
    "changes",
    [{"minors": (2, 9)}, {"symbols": (1, 200)}, {"starts": (6, 99)}, {"starts": (0, -1)}],
    ids=["minor", "symbol", "end", "start"],
)
def test_kernels_refuse_indices_beyond_their_bounds(changes):
    from nqruntime.kernels import products

    right = np.ones((5, 3), np.float32)
    out = np.zeros((6, 3), np.float32)
    assert products.multiply_rows(*spoiled_parts(**changes), right, out, 0, 3) == 1
    # Read as stored by columns, the same arrays describe a 5 x 6 matrix.
    right, out = np.ones((6, 3), np.float32), np.zeros((5, 3), np.float32)
    assert products.multiply_columns(*spoiled_parts(**changes), right, out, 0, 3) == 1
    assert products.multiply_vector(*spoiled_parts(**changes), right[:, 0].copy(), out[:, 0].copy()) == 1


def test_palette_kernels_refuse_symbols_beyond_the_codebook():
    from nqruntime.kernels import products

    symbols = np.array([0, 3, 0, 0], np.uint8)
    codebook = np.ones(3, np.float32)
    assert products.multiply_palette(symbols, codebook, np.ones(2, np.float32), np.zeros(2, np.float32)) == 1
    assert products.expand_symbols(symbols, codebook, np.zeros(4, np.float32)) == 1


def test_column_ranges_beyond_the_output_are_refused():
    from nqruntime.kernels import products

    parts, _ = sparse_parts((6, 5), 12, by_rows=True)
    right, out = np.ones((5, 3), np.float32), np.zeros((6, 3), np.float32)
    for begin, end in ((-1, 2), (0, 4), (2, 1)):
        assert products.multiply_rows(*parts, right, out, begin, end) == 1


@pytest.mark.parametrize(("choice", "expected"), [("numpy", False), ("numba", True)])
def test_the_environment_forces_a_path(monkeypatch, choice, expected):
    monkeypatch.setenv("NQFORMAT_KERNELS", choice)
    assert kernels.worth_numba(1) is expected
    assert kernels.worth_numba(10**9) is expected


def test_only_enough_work_is_worth_importing_numba(monkeypatch):
    monkeypatch.setenv("NQFORMAT_KERNELS", "auto")
    monkeypatch.delitem(__import__("sys").modules, "numba")
    assert not kernels.worth_numba(100_000)
    assert kernels.worth_numba(math.prod((100, 1000, 1000)))
