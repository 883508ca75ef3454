import ml_dtypes
import numpy as np
import pytest

from nqconvert.quantizers import QuantizerSettings
from nqconvert.quantizers.kmeans import quantize_hessian_kmeans, quantize_kmeans
from nqformat.dtypes import DType
from nqformat.errors import ConversionError
from nqformat.tensor import AffineTensor, CodebookTensor, RawTensor


def normal(*shape, seed=0, scale=1.0):
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def quantize(array, **options):
    return quantize_kmeans({"w": array}, None, QuantizerSettings(**options))["w"]


def pruned(*shape, density, seed=0):
    array = normal(*shape, seed=seed)
    array[np.abs(array) < np.quantile(np.abs(array), 1 - density)] = 0
    return array


def test_codebook_is_float16_and_indices_are_bytes():
    tensor = quantize(normal(50, 40), clusters=16)
    assert isinstance(tensor, CodebookTensor)
    assert tensor.codebook.stored_as is DType.FLOAT16
    assert tensor.indices.dtype == np.uint8 and tensor.shape == (50, 40)
    assert np.unique(tensor.indices).size == tensor.codebook.values.size == 16
    assert (np.diff(tensor.codebook.values) > 0).all()


def test_error_is_that_of_the_optimal_quantizer_for_a_normal_source():
    array = normal(100_000, seed=1)
    error = np.mean(np.square(quantize(array, clusters=4).decode() - array))
    assert error == pytest.approx(0.1175, rel=0.02)  # four levels, unit normal: Max 1960, table I


def test_pruned_zeros_are_an_entry_besides_the_clusters():
    array = pruned(60, 50, density=0.3)
    tensor = quantize(array, clusters=8)
    assert tensor.codebook.values.size == 9 and 0.0 in tensor.codebook.values
    assert (tensor.decode()[array == 0] == 0).all()


def test_zero_and_256_clusters_of_a_pruned_tensor_still_fit_a_byte():
    tensor = quantize(pruned(100, 100, density=0.5), clusters=256)
    assert tensor.indices.dtype == np.uint8 and tensor.codebook.values.size == 256


def test_more_than_256_clusters_get_two_byte_indices():
    assert quantize(normal(5000), clusters=300).indices.dtype == np.uint16


def test_few_stray_zeros_or_keep_zeros_off_do_not_reserve_an_entry():
    stray = normal(1000)
    stray[:20] = 0
    assert 0.0 not in quantize(stray, clusters=4).codebook.values
    half = pruned(1000, density=0.5)
    assert quantize(half, clusters=4, keep_zeros=False).codebook.values.size == 4


def test_negative_zeros_of_a_masked_tensor_become_zeros():
    array = normal(500) * (np.arange(500) % 3 == 0)
    assert np.signbit(array[array == 0]).any()
    decoded = quantize(array, clusters=8).decode()
    assert (decoded[array == 0] == 0).all() and not np.signbit(decoded[array == 0]).any()


def test_large_weights_get_a_float32_codebook():
    tensor = quantize(normal(1000, scale=1e6), clusters=8)
    assert tensor.codebook.stored_as is DType.FLOAT32
    assert np.isfinite(tensor.decode()).all()


def test_weights_below_float16_resolution_get_a_float32_codebook():
    tensor = quantize(normal(1000, scale=1e-8), clusters=16)
    assert tensor.codebook.stored_as is DType.FLOAT32
    assert np.unique(tensor.decode()).size == 16


def test_few_distinct_values_are_kept_exactly():
    values = np.array([0.1, -0.7, 0.0, 3.3e-12], dtype=np.float32)
    array = np.random.default_rng(0).choice(values, (40, 40))
    tensor = quantize(array, clusters=4)
    assert isinstance(tensor, CodebookTensor)
    assert np.array_equal(tensor.decode(), array)


def test_a_tensor_smaller_than_its_codebook_stays_raw():
    bias = normal(100)
    tensor = quantize(bias, clusters=256)
    assert isinstance(tensor, RawTensor) and np.array_equal(tensor.decode(), bias)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_dtype_of_the_tensor_is_kept(dtype):
    array = normal(3000).astype(dtype)
    tensor = quantize(array, clusters=16)
    assert tensor.dtype.label == np.dtype(dtype).name
    decoded = tensor.decode()
    if dtype is ml_dtypes.bfloat16:
        decoded = decoded.view(ml_dtypes.bfloat16)
    assert decoded.dtype == dtype and np.unique(decoded.astype(np.float64)).size == 16
    error = np.mean(np.square(decoded.astype(np.float64) - array.astype(np.float64)))
    assert error < 0.013


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_many_clusters_of_a_16_bit_tensor_are_rounded_to_its_dtype(dtype):
    tensor = quantize(normal(100_000).astype(dtype), clusters=256)
    assert isinstance(tensor, CodebookTensor) and tensor.codebook.stored_as is tensor.dtype


def test_float64_beyond_float32_stays_raw():
    array = np.random.default_rng(0).normal(size=600) * 1e200
    assert isinstance(quantize(array, clusters=4), RawTensor)


def test_one_codebook_serves_all_tensors_of_global_scope():
    weights = {
        "a": normal(40, 40),
        "b": pruned(50, 30, density=0.2, seed=1),
        "c": normal(600, seed=2, scale=3),
    }
    tensors = quantize_kmeans(weights, None, QuantizerSettings(clusters=32, scope="global"))
    assert len({id(tensor.codebook) for tensor in tensors.values()}) == 1
    assert (tensors["b"].decode()[weights["b"] == 0] == 0).all()
    assert tensors["c"].shape == (600,)


def test_order_of_the_tensors_is_kept_and_integers_are_lossless():
    ids = np.arange(1000, dtype=np.int64) % 3
    weights = {"b": normal(900), "ids": ids, "a": normal(800), "none": np.empty((0, 3), np.float32)}
    tensors = quantize_kmeans(weights, None, QuantizerSettings(clusters=4))
    assert list(tensors) == ["b", "ids", "a", "none"]
    assert isinstance(tensors["ids"], AffineTensor) and np.array_equal(tensors["ids"].decode(), ids)
    assert tensors["none"].shape == (0, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_weights_are_refused_by_name(bad):
    array = normal(10)
    array[3] = bad
    with pytest.raises(ConversionError, match=r"'fc\.weight': 1 of 10 weights"):
        quantize_kmeans({"ok": normal(5), "fc.weight": array})


def test_sensitivities_pull_the_centres():
    array = np.linspace(0, 1, 1001).astype(np.float32)
    heavy = np.where(array < 0.2, 1000.0, 1.0)
    tensor = quantize_hessian_kmeans({"w": array}, {"w": heavy}, QuantizerSettings(clusters=8))["w"]
    plain = quantize(array, clusters=8)
    weighted_error = [np.average((t.decode() - array) ** 2, weights=heavy) for t in (tensor, plain)]
    assert weighted_error[0] < 0.3 * weighted_error[1]


def test_sensitivities_of_zero_mean_no_weighting():
    array = normal(500)
    tensor = quantize_hessian_kmeans({"w": array}, {"w": np.zeros(500)}, QuantizerSettings(clusters=4))["w"]
    assert np.array_equal(tensor.decode(), quantize(array, clusters=4).decode())


def test_bad_sensitivities_are_refused_by_name():
    array = normal(500)
    for wrong in (np.ones(4), np.full(500, -1.0), np.full(500, np.nan)):
        with pytest.raises(ConversionError, match="'w'"):
            quantize_hessian_kmeans({"w": array}, {"w": wrong})


@pytest.mark.parametrize(
    "options",
    [{"clusters": 0}, {"clusters": 65_537}, {"scope": "row"}, {"codebook_dtype": DType.INT8}, {"seed": -1}],
)
def test_bad_settings_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        QuantizerSettings(**options)
