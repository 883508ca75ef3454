import ml_dtypes
import numpy as np
import pytest

from nqconvert.quantizers.lossless import estimate_bits, lossless_tensor, quantize_lossless
from nqformat.dtypes import DType
from nqformat.tensor import AffineTensor, CodebookTensor, RawTensor

RNG = np.random.default_rng


def test_a_deep_compressed_tensor_becomes_a_codebook_with_its_zeros():
    palette = RNG(0).normal(size=17).astype(np.float32)
    palette[0] = 0
    array = RNG(1).choice(palette, (64, 100), p=[0.9] + [0.1 / 16] * 16)
    tensor = lossless_tensor(array)
    assert isinstance(tensor, CodebookTensor)
    assert np.array_equal(tensor.codebook.values, np.sort(palette))
    assert tensor.codebook.stored_as is DType.FLOAT32 and tensor.indices.dtype == np.uint8
    assert np.array_equal(tensor.decode(), array)


@pytest.mark.parametrize("made_in", [np.float16, ml_dtypes.bfloat16])
def test_codebook_takes_the_smallest_exact_dtype(made_in):
    scale = 1.0 if made_in is np.float16 else 1e-9
    palette = (RNG(0).normal(size=20) * scale).astype(made_in).astype(np.float32)
    tensor = lossless_tensor(RNG(1).choice(palette, 3000))
    assert tensor.codebook.stored_as.label == np.dtype(made_in).name


def test_continuous_weights_stay_raw():
    assert isinstance(lossless_tensor(RNG(0).normal(size=(100, 100)).astype(np.float32)), RawTensor)
    assert isinstance(lossless_tensor(RNG(0).normal(size=400_000).astype(np.float32)), RawTensor)


def test_negative_zero_is_an_entry_of_its_own():
    array = np.where(RNG(0).random(1000) < 0.5, np.float32(-0.0), np.float32(0.0))
    array[::7] = 0.3
    tensor = lossless_tensor(array)
    assert isinstance(tensor, CodebookTensor) and tensor.codebook.values.size == 3
    assert np.array_equal(np.signbit(tensor.decode()), np.signbit(array))


def test_nan_payloads_survive():
    array = np.zeros(200, dtype=np.uint32)
    array[::2] = 0x7FC12345
    tensor = lossless_tensor(array.view(np.float32))
    assert isinstance(tensor, RawTensor)
    assert np.array_equal(tensor.decode().view(np.uint32), array)


@pytest.mark.parametrize("offset", [0.0, -0.123])
def test_dequantized_integers_become_affine(offset):
    q = RNG(0).integers(0 if offset else -127, 128, (60, 50))
    step = np.float32(0.0317)
    array = (np.float64(step) * q + np.float64(np.float32(offset))).astype(np.float32)
    tensor = lossless_tensor(array)
    assert isinstance(tensor, AffineTensor) and tensor.step == step
    assert np.array_equal(tensor.decode(), array)


def test_a_grid_of_very_many_levels_is_found_by_sampling():
    k = RNG(0).integers(-500_000, 500_001, 400_000)
    array = (k * 2.0**-19).astype(np.float32)
    tensor = lossless_tensor(array)
    assert isinstance(tensor, AffineTensor) and np.array_equal(tensor.decode(), array)


def test_one_value_off_the_grid_is_not_lost():
    array = (np.float32(0.5) * RNG(0).integers(-9, 10, 2000)).astype(np.float32)
    array[77] = np.nextafter(np.float32(0.5), np.float32(1))
    tensor = lossless_tensor(array)
    assert tensor.decode()[77] == array[77] and np.array_equal(tensor.decode(), array)


def test_float64_needs_float32_values():
    exact = RNG(0).choice(np.float32([0.1, 0.2, -5]).astype(np.float64), 999)
    tensor = lossless_tensor(exact)
    assert not isinstance(tensor, RawTensor) and tensor.dtype is DType.FLOAT64
    assert np.array_equal(tensor.decode(), exact)
    assert isinstance(lossless_tensor(RNG(0).choice([0.1, 0.2, -5.0], 999)), RawTensor)


def test_integers_become_affine_when_that_pays():
    small = RNG(0).integers(-3, 4, 1000)
    tensor = lossless_tensor(small)
    assert isinstance(tensor, AffineTensor) and tensor.dtype is DType.INT64
    assert np.array_equal(tensor.decode(), small)
    assert isinstance(lossless_tensor(np.arange(5)), RawTensor)
    assert isinstance(lossless_tensor(np.array([2**40, 1] * 100)), RawTensor)
    assert isinstance(lossless_tensor(RNG(0).integers(0, 256, 5000, dtype=np.uint8)), RawTensor)


def test_booleans_scalars_empty_and_constant_arrays_stay_raw():
    arrays = {
        "mask": RNG(0).random(500) < 0.5,
        "scalar": np.float32(3.5).reshape(()),
        "empty": np.empty((4, 0), np.float32),
        "ones": np.ones((30, 30), np.float32),
    }
    tensors = quantize_lossless(arrays)
    assert all(isinstance(tensor, RawTensor) for tensor in tensors.values())
    assert all(tensors[name].shape == array.shape for name, array in arrays.items())


def test_an_unsupported_dtype_is_a_type_error():
    with pytest.raises(TypeError, match="complex64"):
        quantize_lossless({"w": np.ones(3, dtype=np.complex64)})


def test_estimate_follows_the_entropy_of_the_indices():
    probabilities = np.array([0.7, 0.2, 0.1])
    array = RNG(0).choice(np.float32([0.0, 0.31, -0.77]), 200_000, p=probabilities)
    entropy = -(probabilities * np.log2(probabilities)).sum()
    assert estimate_bits(lossless_tensor(array)) / array.size == pytest.approx(entropy, rel=0.01)


def test_estimate_of_raw_floats_counts_the_exponent_at_its_entropy():
    array = RNG(0).normal(size=50_000).astype(np.float32)
    bits = estimate_bits(RawTensor.from_array(array)) / array.size
    assert 26 < bits < 27.5
    truncated = array.astype(ml_dtypes.bfloat16).astype(np.float32)
    assert estimate_bits(RawTensor.from_array(truncated)) / array.size < 12
    assert estimate_bits(RawTensor.from_array(np.ones(9999, np.float32))) < 256


def test_estimate_charges_random_integers_their_width():
    array = RNG(0).integers(0, 2**20, 10_000)
    tensor = AffineTensor(k=array.astype(np.int32), step=1.0, dtype=DType.INT64)
    assert 20 < estimate_bits(tensor) / array.size < 23
