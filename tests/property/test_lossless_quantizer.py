"""The lossless quantizer gives back the same bits for whatever it is given."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nqconvert.quantizers.lossless import quantize_lossless

DTYPES = ["?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)


def bits(array):
    return np.ascontiguousarray(array).tobytes()


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(DTYPES).flatmap(lambda dtype: hnp.arrays(dtype, SHAPES)))
def test_any_array_comes_back_bit_for_bit(array):
    tensor = quantize_lossless({"w": array})["w"]
    assert tensor.shape == array.shape
    assert bits(tensor.decode()) == bits(array)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["<f2", "<f4", "<f8", "bfloat16"]),
    st.lists(
        st.sampled_from([0.0, -0.0, 1.0, -1.5, 0.1, 3e-8, 7e4, 1e-40, float("nan"), float("inf")]), min_size=1
    ),
    st.integers(0, 2**32 - 1),
)
def test_few_distinct_values_come_back_bit_for_bit(dtype, palette, seed):
    with np.errstate(over="ignore"):
        palette = np.array(palette).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    array = np.random.default_rng(seed).choice(palette, (40, 30))
    tensor = quantize_lossless({"w": array})["w"]
    assert bits(tensor.decode()) == bits(array)


@pytest.mark.parametrize("dtype", ["<f4", "<f8"])
@settings(max_examples=80, deadline=None)
@given(
    st.floats(2.0**-20, 1e3, width=32),
    st.floats(-10, 10, width=32),
    st.integers(1, 2**17),
    st.integers(0, 2**32 - 1),
)
def test_uniform_grids_come_back_bit_for_bit(dtype, step, offset, levels, seed):
    k = np.random.default_rng(seed).integers(-levels, levels + 1, 5000)
    array = (np.float64(step) * k + np.float64(offset)).astype(np.float32).astype(dtype)
    tensor = quantize_lossless({"w": array})["w"]
    assert bits(tensor.decode()) == bits(array)
