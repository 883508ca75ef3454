"""Distances of elements against those that NumPy finds."""

from __future__ import annotations

import numpy as np
import pytest

from nqruntime.lowering.layouts import Rows, packed_rows
from nqruntime.lowering.strides import Strides, joined_axes, packed_strides


def strides_of(array):
    return Strides(shape=array.shape, steps=tuple(step // array.itemsize for step in array.strides))


def elements(memory, layout, offset=0):
    """Return the elements at the distances of a layout."""
    places = np.full(layout.shape, offset)
    for axis, (size, step) in enumerate(zip(layout.shape, layout.steps, strict=True)):
        places += np.arange(size).reshape(-1, *(1,) * (len(layout.shape) - axis - 1)) * step
    return memory.reshape(-1)[places]


MEMORY = np.arange(2 * 3 * 4 * 6)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (2, 0, 3, 1), (3, 2, 1, 0), (0, 2, 1, 3)])
@pytest.mark.parametrize("shape", [(6, 4, 6), (2, 3, 24), (144,), (2, 3, 2, 2, 6), (1, 144, 1), (24, 6)])
def test_a_reshape_finds_the_elements_or_nothing(order, shape):
    given = MEMORY.reshape(2, 3, 4, 6).transpose(order)
    found = strides_of(MEMORY.reshape(2, 3, 4, 6)).transposed(order).reshaped(shape)
    if found is not None:
        np.testing.assert_array_equal(elements(MEMORY, found), given.reshape(shape))
    elif order == (0, 1, 2, 3):
        pytest.fail("an array in C order can have any shape")


def test_vectors_with_room_between_them_are_split():
    rows = Rows(shape=(2, 3, 6), pitch=8)
    found = Strides.of(rows).reshaped((2, 3, 2, 3))
    assert found == Strides(shape=(2, 3, 2, 3), steps=(24, 8, 3, 1))
    assert Strides.of(rows).reshaped((2, 18)) is None
    assert Strides.of(rows).rows() == rows


def test_parts_and_repetitions():
    layout = packed_strides((2, 3, 4, 6))
    offset, part = layout.sliced(2, range(1, 4, 2))
    np.testing.assert_array_equal(elements(MEMORY, part, offset), MEMORY.reshape(2, 3, 4, 6)[:, :, 1:4:2])
    wide = packed_strides((3, 1)).expanded((2, 3, 5))
    np.testing.assert_array_equal(elements(MEMORY, wide), np.broadcast_to(MEMORY[:3, None], (2, 3, 5)))


def test_which_layouts_are_vectors():
    assert packed_strides((2, 3, 4)).rows() == packed_rows((2, 3, 4))
    assert packed_strides((2, 3, 4)).transposed((1, 0, 2)).rows() is None
    assert packed_strides((1, 3, 4)).transposed((1, 0, 2)).rows() == Rows(shape=(3, 1, 4), pitch=4)
    assert packed_strides((3, 4)).transposed((1, 0)).rows() is None


def test_axes_are_joined_where_all_arrays_allow():
    shape = (2, 3, 4, 5)
    packed, other = packed_strides(shape).steps, packed_strides((3, 2, 4, 5)).transposed((1, 0, 2, 3)).steps
    assert joined_axes(shape, packed, n_axes=2) == ([1, 120], [[0, 1]])
    assert joined_axes(shape, packed, other, n_axes=3) == ([2, 3, 20], [[60, 20, 1], [20, 40, 1]])
    assert joined_axes(shape, packed, other, n_axes=2) is None
