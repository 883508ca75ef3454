"""Scope ``channel``: codebooks and steps by output."""

from __future__ import annotations

import numpy as np
import pytest

import nqformat
from nqconvert.quantizers import QuantizerSettings, get_quantizer
from nqformat import AffineTensor, CodebookTensor, DType, GroupedTensor, RawTensor

METHODS = ["kmeans", "hessian-kmeans", "uniform", "ecsq", "inq"]


def uneven(shape=(12, 60), seed=0):
    """Rows of very different magnitudes."""
    array = np.random.default_rng(seed).normal(size=shape)
    spread = np.logspace(-2, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return (array * spread).astype(np.float32)


def quantized(method, array, sensitivities=None, **settings):
    given = None if sensitivities is None else {"w": sensitivities}
    return get_quantizer(method)({"w": array}, given, QuantizerSettings(scope="channel", **settings))["w"]


def relative_errors(array, tensor):
    rows, decoded = array.reshape(array.shape[0], -1), tensor.decode().reshape(array.shape[0], -1)
    return np.square(rows - decoded).mean(axis=1) / np.square(rows).mean(axis=1)


@pytest.mark.parametrize("method", METHODS)
def test_every_channel_is_quantized_equally_well(method):
    array = uneven()
    settings = {"rate_penalty": 1e-4} if method == "ecsq" else {}
    tensor = quantized(method, array, clusters=16, **settings)
    assert tensor.shape == array.shape
    errors = relative_errors(array, tensor)
    assert errors.max() < 0.06
    layer = get_quantizer(method)({"w": array}, None, QuantizerSettings(clusters=16, **settings))["w"]
    assert errors.max() < relative_errors(array, layer).max()
    assert np.array_equal(nqformat.load(nqformat.save({"w": tensor}))["w"], tensor.decode())


def test_kmeans_of_a_channel_is_that_of_its_row_alone():
    array = uneven()
    tensor = quantized("kmeans", array, clusters=8)
    assert isinstance(tensor, GroupedTensor)
    assert (tensor.codebook.groups, tensor.span) == (12, 60)
    for i, row in enumerate(array):
        alone = get_quantizer("kmeans")({"w": row}, None, QuantizerSettings(clusters=8))["w"]
        assert np.allclose(tensor.decode()[i], alone.decode(), rtol=2e-3)


def test_uniform_has_a_bfloat16_step_for_each_channel():
    array = uneven((10, 4, 3, 3))
    tensor = quantized("uniform", array, step=0.5)
    assert isinstance(tensor, AffineTensor)
    assert tensor.scales.stored_as is DType.BFLOAT16
    rms = np.sqrt(np.square(array.reshape(10, -1)).mean(axis=1))
    assert np.allclose(tensor.scales.values, 0.5 * rms, rtol=0.01)
    worst = np.abs(array - tensor.decode()).reshape(10, -1).max(axis=1)
    assert (worst <= 0.505 * tensor.scales.values).all()


def test_zeros_of_pruned_channels_stay_zero_and_empty_channels_work():
    array = uneven()
    array[np.random.default_rng(1).random(array.shape) < 0.6] = 0
    array[3] = 0
    array[5] = np.float32(0.25)
    for method in METHODS:
        tensor = quantized(method, array, clusters=8, **({"step": 0.5} if method == "uniform" else {}))
        assert (tensor.decode()[array == 0] == 0).all()
        assert np.isfinite(tensor.decode()).all()


def test_sensitivities_by_channel_make_coarser_steps_where_they_are_small():
    array = uneven() / uneven().std(axis=1, keepdims=True)
    mass = np.ones_like(array)
    mass[6:] = 1e-4
    steps = quantized("uniform", array, mass, step=0.1).scales.values
    assert steps[6:].min() > 50 * steps[:6].max()


def test_half_precision_and_vectors_and_wide_numbers():
    half = quantized("kmeans", uneven().astype(np.float16), clusters=8)
    assert half.dtype is DType.FLOAT16 and half.codebook.stored_as is DType.FLOAT16
    vector = quantized("kmeans", uneven((80, 1)).reshape(-1), clusters=4)
    assert vector.codebook.groups == 80 and np.allclose(
        vector.decode(), uneven((80, 1)).reshape(-1), rtol=1e-3
    )
    wide = uneven().astype(np.float64) * 1e300
    assert isinstance(quantized("kmeans", wide), RawTensor)


def test_few_values_stay_a_codebook_of_the_tensor():
    array = np.random.default_rng(0).choice(np.float32([-1, 1]), (20, 30))
    for method in METHODS:
        tensor = quantized(method, array, clusters=4)
        assert isinstance(tensor, CodebookTensor)
        assert np.array_equal(tensor.decode(), array)
