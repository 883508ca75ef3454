"""Products with rows in vector lanes against NumPy in double precision."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from nqformat.kernels import compiled
from nqruntime.kernels.blocks import SKIP_COLUMNS
from nqruntime.kernels.library import COMPUTE
from nqruntime.packing.areas import address, aligned
from nqruntime.packing.rows import (
    BUFFER_FLOATS,
    pack_bytes,
    pack_floats,
    pack_gaps,
    pack_nibbles,
    pack_slices,
    scaled,
)
from nqruntime.packing.skipping import pack_skipped

SHAPES = [(1, 1), (10, 100), (63, 7), (64, 64), (65, 257), (130, 513), (300, 31)]


@pytest.fixture(scope="module")
def library():
    found = compiled(COMPUTE, 0, worth_loading=0, worth_compiling=0)
    if found is None:
        pytest.skip("no compiled kernels on this machine")
    return found


def quantized_matrix(shape, density, n_entries, seed=0):
    rng = np.random.default_rng(seed)
    codebook = np.concatenate([[0], rng.normal(size=n_entries - 1)]).astype(np.float32)
    symbols = np.where(rng.random(shape) < density, rng.integers(1, n_entries, shape), 0).astype(np.uint8)
    return symbols, codebook


def packed_forms(shape, density, n_entries):
    symbols, codebook = quantized_matrix(shape, density, n_entries)
    rows, columns = np.nonzero(symbols)
    forms = [
        pack_slices(rows, columns, symbols[rows, columns], codebook, shape),
        pack_bytes(symbols, codebook),
        pack_floats(codebook[symbols]),
    ]
    if n_entries <= 16:
        forms.append(pack_nibbles(symbols, codebook))
        forms.append(pack_gaps(rows, columns, symbols[rows, columns], codebook, shape))
    return forms, codebook[symbols].astype(np.float64)


def multiply(library, packed, x, *, bias=None, low=-np.inf, high=np.inf, parts=1):
    out = aligned(len(x) * packed.out_size, np.float32)
    out[:] = np.nan
    buffer = aligned(BUFFER_FLOATS, np.float32)
    added = packed.bias(bias)
    bounds = [packed.n_blocks * i // parts for i in range(parts + 1)]
    for first, last in pairwise(bounds):
        block = packed.block(
            source=address(x),
            source_pitch=x.shape[1],
            n_sources=len(x),
            out=address(out),
            out_pitch=packed.out_size,
            bias=address(added),
            low=low,
            high=high,
            buffer=address(buffer),
            first=first,
            last=last,
        )
        assert library.run(packed.kernel, address(block)) == 0
    return out.reshape(len(x), -1)[:, : packed.n_rows].copy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_entries", [2, 16, 40, 256])
@pytest.mark.parametrize("n_vectors", [1, 2, 5, 6, 7, 12, 13, 40])
def test_every_form_gives_the_product(library, shape, n_entries, n_vectors):
    forms, exact = packed_forms(shape, 0.3, n_entries)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(n_vectors, shape[1])).astype(np.float32)
    bias = rng.normal(size=shape[0]).astype(np.float32)
    expected = np.clip(x.astype(np.float64) @ exact.T + bias, -1, 2)
    for packed in forms:
        found = multiply(library, packed, x, bias=bias, low=-1, high=2)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.sqrt(shape[1]))


@pytest.mark.parametrize("n_vectors", [1, 20])
def test_rows_have_factors(library, n_vectors):
    forms, exact = packed_forms((70, 300), 0.3, 16)
    rng = np.random.default_rng(2)
    factors = rng.normal(size=70).astype(np.float32)
    x = rng.normal(size=(n_vectors, 300)).astype(np.float32)
    bias = rng.normal(size=70).astype(np.float32)
    expected = x.astype(np.float64) @ (exact * factors[:, None]).T + bias
    for packed in forms:
        found = multiply(library, scaled(packed, factors), x, bias=bias)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n_vectors", [1, 20])
def test_results_do_not_depend_on_how_the_work_is_split(library, n_vectors):
    forms, _ = packed_forms((300, 257), 0.2, 16)
    x = np.random.default_rng(3).normal(size=(n_vectors, 257)).astype(np.float32)
    for packed in forms:
        whole = multiply(library, packed, x)
        for parts in (2, 3):
            assert multiply(library, packed, x, parts=parts).tobytes() == whole.tobytes()


def test_rows_without_nonzeros_give_the_bias(library):
    symbols = np.zeros((20, 9), dtype=np.uint8)
    codebook = np.array([0, 1], dtype=np.float32)
    nothing = np.zeros(0, dtype=np.int64)
    packed = pack_slices(nothing, nothing, symbols[:0, 0], codebook, (20, 9))
    bias = np.arange(20, dtype=np.float32)
    np.testing.assert_array_equal(multiply(library, packed, np.ones((1, 9), np.float32), bias=bias)[0], bias)


def test_not_a_number_stays_one_through_the_clamp(library):
    forms, _ = packed_forms((5, 6), 1.0, 16)
    x = np.full((1, 6), np.nan, dtype=np.float32)
    for packed in forms:
        assert np.isnan(multiply(library, packed, x, low=0)).all()


def test_slices_need_three_bytes_a_nonzero():
    symbols, codebook = quantized_matrix((2048, 2048), 0.09, 16)
    rows, columns = np.nonzero(symbols)
    packed = pack_slices(rows, columns, symbols[rows, columns], codebook, symbols.shape)
    assert packed.weight_bytes < 3 * 1.05 * rows.size


def test_nibbles_need_an_eighth_of_floats():
    symbols, codebook = quantized_matrix((1024, 512), 1.0, 16)
    assert pack_nibbles(symbols, codebook).weight_bytes < 1.02 * symbols.size / 2


def test_slices_are_refused_for_columns_beyond_their_field():
    one = np.zeros(1, dtype=np.int64)
    codebook = np.array([0, 1], dtype=np.float32)
    assert pack_slices(one, one + 70_000, np.ones(1, np.uint8), codebook, (1, 70_001)) is None


def skipped_product(library, packed, x, most_nonzeros):
    out = aligned(packed.factors.size, np.float32)
    out[:] = np.nan
    bias = packed.bias(np.arange(packed.shape[0], dtype=np.float32))
    block = packed.block(
        source=address(x), out=address(out), bias=address(bias), low=-1, high=9, most_nonzeros=most_nonzeros
    )
    return library.run(SKIP_COLUMNS, address(block)), out[: packed.shape[0]]


@pytest.mark.parametrize("shape", SHAPES)
def test_zero_inputs_are_skipped_without_changing_the_product(library, shape):
    symbols, codebook = quantized_matrix(shape, 0.3, 12)
    rows, columns = np.nonzero(symbols)
    rng = np.random.default_rng(4)
    factors = rng.normal(size=shape[0]).astype(np.float32)
    packed = pack_skipped((rows, columns, symbols[rows, columns]), codebook, factors, shape)
    x = (rng.normal(size=shape[1]) * (rng.random(shape[1]) < 0.4)).astype(np.float32)
    x[x == 0] = -0.0
    n_nonzeros = np.count_nonzero(x)
    matrix = codebook.astype(np.float64)[symbols] * factors[:, None]
    skips, found = skipped_product(library, packed, x, n_nonzeros)
    assert skips == 1
    np.testing.assert_allclose(found, np.clip(matrix @ x + np.arange(shape[0]), -1, 9), rtol=1e-4, atol=1e-4)


def test_vectors_of_too_many_nonzeros_are_left_to_the_next_step(library):
    nothing = np.zeros(0, dtype=np.int64)
    ones = np.ones(4, dtype=np.float32)
    packed = pack_skipped((nothing, nothing, nothing), np.zeros(1, np.float32), ones, (4, 5))
    skips, found = skipped_product(library, packed, np.ones(5, np.float32), 4)
    assert skips == 0
    assert np.isnan(found).all()


def test_gaps_need_a_byte_and_a_half_a_nonzero():
    symbols, codebook = quantized_matrix((2048, 2048), 0.09, 16)
    rows, columns = np.nonzero(symbols)
    packed = pack_gaps(rows, columns, symbols[rows, columns], codebook, symbols.shape)
    assert packed.weight_bytes < 1.5 * 1.05 * rows.size


@pytest.mark.parametrize("n_vectors", [1, 3])
def test_gaps_reach_nonzeros_far_away(library, n_vectors):
    shape = (40, 70_000)
    rng = np.random.default_rng(5)
    rows, columns = np.nonzero(rng.random(shape) < 2e-4)
    rows = np.concatenate([rows, [39, 38, 38, 37, 37]])
    columns = np.concatenate([columns, [69_999, 0, 255, 256, 256 + 255 * 3]])
    unique = np.unique(rows * shape[1] + columns)
    rows, columns = np.divmod(unique, shape[1])
    symbols = rng.integers(1, 5, rows.size).astype(np.uint8)
    codebook = np.array([0, 1, -2, 0.5, 3], dtype=np.float32)
    matrix = np.zeros(shape)
    matrix[rows, columns] = codebook[symbols]
    x = rng.normal(size=(n_vectors, shape[1])).astype(np.float32)
    packed = pack_gaps(rows, columns, symbols, codebook, shape)
    np.testing.assert_allclose(multiply(library, packed, x), x @ matrix.T, rtol=1e-4, atol=1e-4)
