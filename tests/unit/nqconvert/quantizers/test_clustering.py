import time

import numpy as np
import pytest

from nqconvert.kernels import numba_available
from nqconvert.quantizers import clustering
from nqconvert.quantizers.clustering import cluster_1d
from nqformat.errors import MissingDependencyError


def squared_error(values, centres):
    wide = values.astype(np.float64)
    nearest = np.searchsorted((centres[:-1] + centres[1:]) / 2, wide)
    return float(np.square(wide - centres[nearest]).sum())


def test_separated_groups_are_found():
    values = np.array([10.0, 0.1, 5.0, 0.0, 10.2, 5.2, 0.2, 9.8])
    assert cluster_1d(values, k=3) == pytest.approx([0.1, 5.1, 10.0])


def test_one_cluster_is_the_weighted_mean():
    values, weights = np.array([1.0, 2.0, 6.0]), np.array([1.0, 1.0, 2.0])
    assert cluster_1d(values, weights, k=1) == pytest.approx([3.75])


def test_integer_weights_act_like_repetitions():
    rng = np.random.default_rng(1)
    values, times = rng.normal(size=40), rng.integers(1, 6, 40)
    assert cluster_1d(values, times, k=5) == pytest.approx(cluster_1d(np.repeat(values, times), k=5))


def test_values_of_weight_zero_do_not_count():
    values, weights = np.array([0.0, 1.0, 1e6]), np.array([1.0, 1.0, 0.0])
    assert cluster_1d(values, weights, k=2).tolist() == [0.0, 1.0]


def test_fewer_distinct_values_than_clusters_are_returned_as_they_are():
    assert cluster_1d(np.float32([0.5, -2, 0.5, 0.25]), k=10).tolist() == [-2.0, 0.25, 0.5]


@pytest.mark.skipif(not numba_available(), reason="exact for this many values with Numba only")
def test_equally_spaced_values_split_evenly():
    centres = cluster_1d(np.arange(10_000.0), k=100)
    assert centres == pytest.approx(np.arange(100) * 100 + 49.5)


def test_a_far_outlier_does_not_blur_the_rest():
    values = np.concatenate([[1e8], np.array([0.0, 1e-3, 1.0, 1.001])])
    assert cluster_1d(values, k=3) == pytest.approx([0.0005, 1.0005, 1e8], abs=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e300])
def test_extreme_magnitudes_neither_overflow_nor_vanish(scale):
    assert cluster_1d(np.array([1.0, 1.1, 3.0, 3.1]) * scale, k=2) / scale == pytest.approx([1.05, 3.05])


def test_shape_and_order_of_the_values_do_not_matter():
    values = np.random.default_rng(2).normal(size=(20, 30))
    shuffled = np.random.default_rng(3).permutation(values.reshape(-1))
    assert np.array_equal(cluster_1d(values, k=8), cluster_1d(shuffled, k=8))


def test_without_numba_many_values_are_clustered_nearly_as_well(monkeypatch):
    values = np.random.default_rng(4).standard_normal(5000).astype(np.float32)
    exact = cluster_1d(values, k=7)
    monkeypatch.setenv("NQFORMAT_KERNELS", "numpy")
    monkeypatch.setattr(clustering, "MAX_REFERENCE_VALUES", 500)
    approximate = cluster_1d(values, k=7)
    assert squared_error(values, exact) <= squared_error(values, approximate) * (1 + 1e-12)
    assert squared_error(values, approximate) <= 1.001 * squared_error(values, exact)


def test_without_numba_too_many_clusters_name_the_missing_package(monkeypatch):
    monkeypatch.setenv("NQFORMAT_KERNELS", "numpy")
    with pytest.raises(MissingDependencyError, match="numba"):
        cluster_1d(np.arange(3000.0), k=2000)


def test_bins_of_very_many_values_lose_almost_nothing(monkeypatch):
    pytest.importorskip("numba")
    values = np.random.default_rng(5).laplace(size=50_000).astype(np.float32)
    exact = cluster_1d(values, k=16)
    monkeypatch.setattr(clustering, "MAX_EXACT_VALUES", 10_000)
    binned = cluster_1d(values, k=16)
    assert squared_error(values, binned) <= 1.0001 * squared_error(values, exact)
    weighted = cluster_1d(values, np.full(values.size, 3.0), k=16)
    assert weighted == pytest.approx(binned)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="k must be"):
        cluster_1d(np.ones(3), k=0)
    with pytest.raises(ValueError, match="finite"):
        cluster_1d(np.array([1.0, np.nan]), k=1)
    with pytest.raises(ValueError, match="at least one"):
        cluster_1d(np.empty(0), k=1)
    with pytest.raises(ValueError, match="3 values but 2 weights"):
        cluster_1d(np.ones(3), np.ones(2), k=1)
    for weights in ([1.0, -1.0], [0.0, 0.0], [np.inf, 1.0]):
        with pytest.raises(ValueError, match="weights must be"):
            cluster_1d(np.ones(2), np.array(weights), k=1)


@pytest.mark.slow
def test_half_a_million_values_take_seconds():
    pytest.importorskip("numba")
    values = np.random.default_rng(6).standard_normal(500_000)
    cluster_1d(values[:5000], k=16)
    began = time.perf_counter()
    assert cluster_1d(values, k=256).size == 256
    assert time.perf_counter() - began < 10
