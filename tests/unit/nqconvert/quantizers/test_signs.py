"""Binary and ternary weights are found and kept exactly."""

from __future__ import annotations

import numpy as np
import pytest

import nqformat
from nqconvert.presets import preset_settings
from nqconvert.quantization import quantize_tensors
from nqconvert.quantizers import quantizer_names
from nqconvert.quantizers.rate import estimate_bits
from nqconvert.quantizers.signs import few_valued_tensor
from nqformat import CodebookTensor, DType, RawTensor

RNG = np.random.default_rng(4)


def signs(shape, *, ternary):
    return RNG.choice(np.float32([-1, 0, 1] if ternary else [-1, 1]), shape)


def factors(n):
    return RNG.uniform(0.01, 2, n).astype(np.float32)


def cases():
    alpha = factors(24)
    yield "binary", signs((24, 40), ternary=False) * np.float32(0.37)
    yield "ternary", signs((24, 40), ternary=True) * np.float32(0.37)
    yield "two values", RNG.choice(np.float32([-0.2, 0.7]), (24, 40))
    yield "by row", signs((24, 40), ternary=False) * alpha[:, None]
    yield "ternary by row", signs((24, 40), ternary=True) * alpha[:, None]
    yield "by column", signs((40, 24), ternary=True) * alpha
    yield "kernels", signs((24, 5, 3, 3), ternary=False) * alpha[:, None, None, None]
    yield "transposed kernels", signs((5, 24, 3, 3), ternary=False) * alpha[:, None, None]
    yield "half", (signs((24, 40), ternary=False) * alpha[:, None]).astype(np.float16)


CASES = dict(cases())


@pytest.mark.parametrize("method", quantizer_names())
@pytest.mark.parametrize("case", sorted(CASES))
def test_they_stay_exact_whatever_the_method(case, method):
    array = CASES[case]
    settings = preset_settings("auto", method=method, clusters=2, step=1.0)
    made = quantize_tensors({"w": array}, settings)
    assert np.array_equal(made.tensors["w"].decode(), array)
    assert not made.exact or method == "none"
    assert np.array_equal(nqformat.load(nqformat.save(made.tensors))["w"], array)


def test_signs_by_channel_take_a_bit_each():
    array = signs((64, 100), ternary=False) * factors(64)[:, None]
    tensor = few_valued_tensor(array)
    assert isinstance(tensor, CodebookTensor)
    assert tensor.codebook.values.tolist() == [-1.0, 1.0]
    assert estimate_bits(tensor) < estimate_bits(RawTensor.from_array(array)) / 10
    assert len(nqformat.save({"w": tensor})) < array.size / 8 + 64 * 4 + 150


def test_an_empty_channel_has_any_factor():
    array = signs((24, 40), ternary=True) * factors(24)[:, None]
    array[7] = 0
    tensor = few_valued_tensor(array)
    assert np.array_equal(tensor.decode(), array)
    assert tensor.scales.stored_as is DType.FLOAT32


def test_factors_are_stored_in_the_least_type_that_is_exact():
    array = signs((24, 40), ternary=True) * np.ldexp(1.0, np.arange(24) % 7 - 3).astype(np.float32)[:, None]
    assert few_valued_tensor(array).scales.stored_as is not DType.FLOAT32


def test_what_is_no_such_tensor():
    array = signs((24, 40), ternary=False) * factors(24)[:, None]
    negative_zero = array.copy()
    negative_zero[2, 3] = -0.0
    other = array.copy()
    other[5, 5] *= 2
    for given in (
        negative_zero,
        other,
        RNG.normal(size=(24, 40)).astype(np.float32),
        np.full((24, 40), np.nan, np.float32),
        factors(40),
        factors(40)[:, None],
        np.ones((9, 9), np.float32),
        np.arange(100),
    ):
        assert few_valued_tensor(given) is None
    made = quantize_tensors({"w": negative_zero}, preset_settings("lossless"))
    assert made.tensors["w"].decode().tobytes() == negative_zero.tobytes()
