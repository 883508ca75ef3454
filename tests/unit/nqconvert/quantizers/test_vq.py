"""Vector and product quantization."""

from __future__ import annotations

import numpy as np
import pytest

from nqconvert.quantizers import QuantizerSettings, get_quantizer
from nqconvert.quantizers.vectors import cluster_vectors, nearest_vectors
from nqconvert.quantizers.vq import quantize_vq
from nqformat import CodebookTensor, ConversionError, DType, GroupedTensor, RawTensor


def weights(shape=(48, 40), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def quantized(array, sensitivities=None, **settings):
    given = None if sensitivities is None else {"w": sensitivities}
    return quantize_vq({"w": array}, given, QuantizerSettings(**settings))["w"]


def error(array, tensor, mass=1.0):
    return float((mass * np.square(array.astype(np.float64) - tensor.decode())).sum())


def test_each_unit_has_the_nearest_entry():
    array = weights()
    tensor = quantized(array, width=4, clusters=32)
    assert isinstance(tensor, GroupedTensor)
    assert tensor.codebook.values.shape == (1, 32, 4)
    units = array.reshape(-1, 4)
    distances = np.square(units[:, None] - tensor.codebook.values[0]).sum(axis=2)
    best = distances.min(axis=1)
    assert np.allclose(distances[np.arange(best.size), tensor.indices], best, rtol=1e-5)
    assert np.array_equal(tensor.decode().reshape(-1, 4), tensor.codebook.values[0][tensor.indices])


def test_more_entries_and_codebooks_by_place_lower_the_error():
    array = weights()
    coarse, fine = (quantized(array, width=4, clusters=k) for k in (8, 64))
    product = quantized(array, width=4, clusters=8, product=True)
    assert product.codebook.values.shape == (10, 8, 4)
    assert error(array, fine) < 0.7 * error(array, coarse)
    assert error(array, product) < error(array, coarse)


def test_vectors_beat_numbers_of_the_same_rate_where_neighbours_resemble_each_other():
    rng = np.random.default_rng(1)
    base = rng.normal(size=(200, 10))
    array = np.repeat(base, 4, axis=1) + 0.05 * rng.normal(size=(200, 40))
    array = array.astype(np.float32)
    vectors = quantized(array, width=4, clusters=256)
    numbers = get_quantizer("kmeans")({"w": array}, None, QuantizerSettings(clusters=4))["w"]
    assert error(array, vectors) < 0.2 * error(array, numbers)


def test_sensitivities_weight_the_error():
    array = weights()
    mass = np.where(np.arange(40) % 4 == 1, 100.0, 1.0) * np.ones((48, 1))
    mass = mass.astype(np.float32)
    plain = quantized(array, width=4, clusters=16)
    weighted = quantized(array, mass, width=4, clusters=16)
    assert error(array, weighted, mass) < 0.5 * error(array, plain, mass)


def test_the_seed_decides():
    array = weights()
    one, again = (quantized(array, width=2, clusters=16, seed=3) for _ in range(2))
    assert one.decode().tobytes() == again.decode().tobytes()
    assert one.decode().tobytes() != quantized(array, width=2, clusters=16, seed=4).decode().tobytes()


@pytest.mark.parametrize("shape, width", [((7, 9), 4), ((5, 3, 3, 3), 9), ((100,), 3), ((3, 1, 30), 64)])
def test_any_shape_and_width(shape, width):
    array = weights(shape)
    for product in (False, True):
        tensor = quantized(array, width=width, clusters=8, product=product)
        assert tensor.shape == shape
        assert error(array, tensor) < float(np.square(array).sum())


def test_few_values_are_kept_exactly_and_wide_ones_raw():
    array = np.random.default_rng(0).choice(np.float32([-0.5, 0.0, 0.25]), (40, 40))
    tensor = quantized(array, width=4)
    assert isinstance(tensor, CodebookTensor)
    assert np.array_equal(tensor.decode(), array)
    wide = weights().astype(np.float64) * 1e300
    assert isinstance(quantized(wide), RawTensor)


@pytest.mark.parametrize("dtype, stored_as", [(np.float16, DType.FLOAT16), (np.float32, DType.FLOAT16)])
def test_entries_are_stored_in_half_precision_where_that_does_no_harm(dtype, stored_as):
    assert quantized(weights().astype(dtype), clusters=16).codebook.stored_as is stored_as
    tiny = quantized(weights() * np.float32(1e-9), clusters=16)
    assert tiny.codebook.stored_as is DType.FLOAT32


def test_bad_weights_and_settings_are_refused():
    array = weights()
    array[0, 0] = np.nan
    with pytest.raises(ConversionError, match="'w': 1 of"):
        quantized(array)
    with pytest.raises(ConversionError, match="must be finite"):
        quantized(weights(), -np.ones((48, 40), np.float32))
    for width in (0, 65):
        with pytest.raises(ValueError, match="width"):
            QuantizerSettings(width=width)


def test_clustering_finds_separate_clouds():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(12, 3)) * 50
    points = (centres[rng.integers(0, 12, 3000)] + rng.normal(size=(3000, 3))).astype(np.float32)
    found = cluster_vectors(points, None, 12, rng)
    _, distances = nearest_vectors(points, None, found)
    assert distances.mean() < 3.5


def test_clustering_ends_with_repeated_points_and_weights_of_zero():
    points = np.repeat(np.arange(6, dtype=np.float32), 50).reshape(-1, 2)
    assert cluster_vectors(points, None, 10, np.random.default_rng(0)).shape == (6, 2)
    mass = np.zeros_like(points)
    mass[::2] = 1
    found = cluster_vectors(weights((300, 2)), np.zeros((300, 2), np.float32), 5, np.random.default_rng(0))
    assert np.isfinite(found).all()
    assert np.isfinite(cluster_vectors(points, mass, 2, np.random.default_rng(0))).all()
