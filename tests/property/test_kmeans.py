"""Exact one-dimensional k-means against brute force and against its plain reference."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nqconvert.kernels.reference import partition_values_reference
from nqconvert.quantizers import QuantizerSettings
from nqconvert.quantizers.clustering import cluster_1d
from nqconvert.quantizers.kmeans import quantize_kmeans

NUMBERS = st.one_of(
    st.integers(-6, 6).map(float),
    st.floats(-1e3, 1e3, allow_nan=False, width=32),
    st.sampled_from([0.0, 1e-6, -1e-6, 65504.0, -3e4]),
)


def squared_error(values, weights, centres):
    distances = np.abs(np.asarray(values)[:, None] - np.asarray(centres)[None, :])
    return float((np.asarray(weights) * distances.min(axis=1) ** 2).sum())


def error_of_parts(values, weights, bounds):
    total = 0.0
    for start, stop in pairwise(bounds):
        mean = np.average(values[start:stop], weights=weights[start:stop])
        total += float((weights[start:stop] * (values[start:stop] - mean) ** 2).sum())
    return total


def least_error_by_brute_force(values, weights, k):
    order = np.argsort(values)
    values, weights = np.asarray(values)[order], np.asarray(weights)[order]
    inner = range(1, values.size)
    cuts = combinations(inner, min(k, values.size) - 1)
    return min(error_of_parts(values, weights, [0, *cut, values.size]) for cut in cuts)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NUMBERS, st.floats(0.01, 10.0)), min_size=1, max_size=9), st.integers(1, 5))
def test_no_split_into_k_parts_is_better(pairs, k):
    values, weights = (np.array(column) for column in zip(*pairs, strict=True))
    centres = cluster_1d(values, weights, k=k)
    assert (np.diff(centres) > 0).all() and centres.size <= k
    best = least_error_by_brute_force(values, weights, k)
    assert squared_error(values, weights, centres) <= best * (1 + 1e-9) + 1e-18 * (
        1 + np.abs(values).max() ** 2
    )


@settings(max_examples=100, deadline=None)
@given(
    st.lists(NUMBERS, min_size=2, max_size=60, unique=True),
    st.integers(1, 60),
    st.integers(0, 2**32 - 1),
)
def test_penalty_search_is_as_good_as_the_reference(numbers, n_parts, seed):
    pytest.importorskip("numba")
    from nqconvert.kernels.parametric import partition_values_parametric

    values = np.sort(np.array(numbers)) / max(1e-9, np.abs(numbers).max())
    weights = np.random.default_rng(seed).choice([0.25, 1.0, 7.0], values.size)
    n_parts = min(n_parts, values.size)
    bounds = partition_values_parametric(values, weights, n_parts)
    assert bounds[0] == 0 and bounds[-1] == values.size
    assert bounds.size == n_parts + 1 and (np.diff(bounds) > 0).all()
    expected = error_of_parts(values, weights, partition_values_reference(values, weights, n_parts))
    assert error_of_parts(values, weights, bounds) == pytest.approx(expected, rel=1e-9, abs=1e-13)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-50, 50, allow_nan=False, width=32), min_size=1, max_size=120),
    st.integers(1, 20),
    st.floats(0.0, 0.9),
    st.integers(0, 2**32 - 1),
)
def test_every_value_gets_its_nearest_entry_and_pruned_zeros_stay(numbers, clusters, sparsity, seed):
    array = np.array(numbers, dtype=np.float32)
    array[np.random.default_rng(seed).random(array.size) < sparsity] = 0
    tensor = quantize_kmeans({"w": array}, None, QuantizerSettings(clusters=clusters))["w"]
    decoded = tensor.decode()
    assert decoded.shape == array.shape and decoded.dtype == np.float32
    entries = np.unique(decoded)
    distances = np.abs(array.astype(np.float64)[:, None] - entries.astype(np.float64))
    chosen = np.abs(array.astype(np.float64) - decoded)
    assert (chosen <= distances.min(axis=1)).all()
    if np.mean(array == 0) >= 0.1:
        assert (decoded[array == 0] == 0).all()
    if np.unique(array).size <= clusters:
        assert np.array_equal(decoded, array)
