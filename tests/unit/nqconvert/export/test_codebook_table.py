from __future__ import annotations

import numpy as np
import pytest

from nqconvert.export.building import pack_bits
from nqconvert.export.forms.codebook_table import table_of_packed, table_of_values
from nqformat import DType, Layout, PackedTensor


def packed(symbols, shape, *, positions=None, **values):
    return PackedTensor(
        name="w",
        dtype=values.pop("dtype", DType.FLOAT32),
        shape=shape,
        layout=Layout.DENSE if positions is None else Layout.SPARSE,
        symbols=np.asarray(symbols),
        positions=None if positions is None else np.asarray(positions, np.int64),
        codebook=values.pop("codebook", None),
        **values,
    )


def same_bits(table, tensor):
    unsigned = f"u{table.entries.itemsize}"
    np.testing.assert_array_equal(table.entries[table.indices].view(unsigned), tensor.decode().view(unsigned))


def test_unused_entries_are_left_out():
    codebook = np.arange(40, dtype=np.float32)
    tensor = packed(np.array([3, 39, 3, 7], np.uint8), (2, 2), codebook=codebook)
    table = table_of_packed(tensor)
    assert table.entries.tolist() == [3, 7, 39] and table.indices.tolist() == [[0, 2], [0, 1]]


def test_the_implied_zero_is_an_entry_of_its_own_and_positive():
    codebook = np.array([-0.0, 2.0], np.float32)
    tensor = packed(np.array([0, 1], np.uint8), (5,), positions=[1, 3], codebook=codebook)
    table = table_of_packed(tensor)
    assert table.n_entries == 3
    same_bits(table, tensor)


def test_a_zero_that_is_there_serves_for_the_implied_one():
    codebook = np.array([0.0, 2.0], np.float32)
    tensor = packed(np.array([0, 1], np.uint8), (5,), positions=[1, 3], codebook=codebook)
    assert table_of_packed(tensor).n_entries == 2
    same_bits(table_of_packed(tensor), tensor)


@pytest.mark.parametrize("spread", [10, 1 << 22])
def test_affine_tensors_get_a_table_of_their_distinct_values(spread):
    k = (np.array([-2, 0, 1, 1, -2]) * spread).astype(np.int32)
    tensor = packed(k, (5,), step=0.25, offset=1.0)
    table = table_of_packed(tensor)
    assert table.n_entries == 3
    same_bits(table, tensor)


def test_too_many_values_give_no_table():
    tensor = packed(np.arange(70_000, dtype=np.int32), (70_000,), step=1.0)
    assert table_of_packed(tensor) is None
    assert table_of_values(np.arange(70_000, dtype=np.float32), DType.FLOAT32) is None


def test_values_are_told_apart_by_their_bits():
    values = np.array([[0.0, -0.0], [np.nan, 1.0]], np.float32)
    table = table_of_values(values, DType.FLOAT32)
    assert table.n_entries == 4
    np.testing.assert_array_equal(table.entries[table.indices].view("u4"), values.view("u4"))


def test_the_first_of_two_nibbles_is_the_low_one():
    assert pack_bits(np.array([1, 2, 15]), 4) == b"\x21\x0f"
