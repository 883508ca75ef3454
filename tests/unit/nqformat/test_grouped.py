"""Codebooks by group and codebooks of vectors (spec 6.1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

import nqformat
from nqformat import (
    Codebook,
    CodebookTensor,
    DType,
    GroupedCodebook,
    GroupedTensor,
    Layout,
    Limits,
    Scales,
)
from nqformat.codebooks import CodebookCoding, decode_codebook, encode_codebook, padding_after

RNG = np.random.default_rng(5)


def book(groups: int, entries: int, width: int, *, zero: bool = False) -> GroupedCodebook:
    values = RNG.normal(size=(groups, entries, width)).astype(np.float16).astype(np.float32)
    if zero:
        for group in range(groups):
            values[group, group % entries] = 0
    return GroupedCodebook(values=values, stored_as=DType.FLOAT16)


def tensor(
    shape: tuple[int, ...],
    codebook: GroupedCodebook,
    span: int,
    *,
    zeros: float = 0.0,
    column_scan: bool = False,
) -> GroupedTensor:
    n = -(-math.prod(shape) // codebook.width)
    indices = RNG.integers(0, codebook.entries, n)
    zero = np.arange(n) // span % codebook.groups % codebook.entries
    indices = np.where(RNG.random(n) < zeros, zero, indices)
    return GroupedTensor(
        indices=indices.astype(np.uint8), shape=shape, codebook=codebook, span=span, column_scan=column_scan
    )


def by_hand(given: GroupedTensor) -> np.ndarray:
    """Section 6.1, element by element."""
    rows, rest = given.shape[0], math.prod(given.shape[1:])
    out = np.zeros(rows * rest, dtype=np.float32)
    width = given.codebook.width
    for p in range(out.size):
        unit = p // width
        entry = given.codebook.values[unit // given.span % given.codebook.groups, given.indices[unit]]
        place = (p % rows) * rest + p // rows if given.column_scan else p
        out[place] = entry[p % width]
    return out.reshape(given.shape)


@pytest.mark.parametrize("groups, span", [(1, 1), (20, 24), (5, 96), (4, 6), (7, 1)])
@pytest.mark.parametrize("width", [1, 2, 3, 5])
@pytest.mark.parametrize("column_scan", [False, True])
def test_units_take_entries_of_their_group(groups: int, span: int, width: int, column_scan: bool) -> None:
    if groups == width == 1 or (column_scan and width == 1):
        return
    given = tensor((20, 6, 4), book(groups, 7, width), span, column_scan=column_scan)
    with nqformat.from_bytes(nqformat.save({"t": given})) as file:
        assert np.array_equal(file.get_tensor("t"), by_hand(given))
        assert np.array_equal(file.get_slice("t", 3, 11), by_hand(given)[3:11])
        assert np.array_equal(file.get_packed("t"), by_hand(given))
        info = file.info("t")
        assert (info.codebook_groups, info.codebook_width) == (groups, width)
    assert np.array_equal(given.decode(), by_hand(given))


@pytest.mark.parametrize("layout", [Layout.DENSE, Layout.SPARSE, Layout.MASK])
@pytest.mark.parametrize("column_scan", [False, True])
@pytest.mark.parametrize("width", [1, 4])
def test_every_layout_holds_grouped_entries(
    layout: Layout, column_scan: bool, width: int, forced_plan: Callable[[Layout, bool], None]
) -> None:
    forced_plan(layout, column_scan and width == 1)
    given = tensor(
        (30, 23), book(6, 9, width, zero=True), 10, zeros=0.7, column_scan=column_scan and width > 1
    )
    with nqformat.from_bytes(nqformat.save({"t": given})) as file:
        assert file.info("t").layout is layout
        assert np.array_equal(file.get_tensor("t"), by_hand(given))
        assert np.array_equal(file.get_grouped("t").decode(), by_hand(given))


def test_a_grouped_tensor_can_be_partitioned_and_scaled() -> None:
    codebook = book(150, 4, 1)
    codebook.values[:, 0] = 0
    density = np.choose(RNG.integers(0, 3, 150), [0.0, 0.05, 0.5])
    indices = np.where(RNG.random((150, 100)) < density[:, None], RNG.integers(1, 4, (150, 100)), 0)
    given = GroupedTensor(
        indices=indices.reshape(-1).astype(np.uint8),
        shape=(150, 100),
        codebook=codebook,
        span=100,
        dtype=DType.FLOAT16,
        scales=Scales(values=np.linspace(0.5, 2, 7, dtype=np.float32), span=3),
    )
    with nqformat.from_bytes(nqformat.save({"t": given})) as file:
        assert file.directory.tensors[0].fields.partition is not None
        assert np.array_equal(file.get_tensor("t"), given.decode())


def test_two_tensors_share_a_grouped_codebook() -> None:
    shared = book(3, 8, 2, zero=True)
    tensors = {
        "a": tensor((9, 8), shared, 4),
        "b": tensor((6, 6), shared, 2, zeros=0.9),
        "c": CodebookTensor(
            indices=np.zeros((3, 3), np.uint8), codebook=Codebook(values=np.ones(1, np.float32))
        ),
    }
    with nqformat.from_bytes(nqformat.save(tensors)) as file:
        assert len(file.directory.codebooks) == 2
        for name, given in tensors.items():
            assert np.array_equal(file.get_tensor(name), given.decode())


def test_groups_that_use_fewer_entries_are_filled_up_and_still_delta_coded() -> None:
    steps = RNG.integers(1, 9, (40, 60)).cumsum(axis=1) / 512 - 0.25
    values = steps.astype(np.float16).astype(np.float32)
    codebook = GroupedCodebook(values=values[:, :, None], stored_as=DType.FLOAT16)
    indices = RNG.integers(0, codebook.entries, (40, 500))
    indices[3] //= 4
    given = GroupedTensor(
        indices=indices.reshape(-1).astype(np.uint8), shape=(40, 500), codebook=codebook, span=500
    )
    with nqformat.from_bytes(nqformat.save({"t": given})) as file:
        [record] = file.directory.codebooks
        assert record.coding is CodebookCoding.SORTED_DELTA
        assert record.payload_bytes < 2 * codebook.values.size
        assert np.array_equal(file.get_tensor("t"), given.decode())


@pytest.mark.parametrize("stored_as", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16])
def test_grouped_codebooks_survive_both_codings(stored_as: DType) -> None:
    values = np.arange(24, dtype=np.float32).reshape(3, 8, 1) / 8
    for given in (values, values[:, ::-1], values.reshape(3, 4, 2)):
        codebook = GroupedCodebook(values=np.ascontiguousarray(given), stored_as=stored_as)
        record, payload = encode_codebook(codebook)
        assert np.array_equal(decode_codebook(record, payload), given)


def test_padding_ends_where_numbers_end() -> None:
    assert padding_after(np.float32(1), DType.BFLOAT16, 2).tolist() == [1.0078125, 1.015625]
    largest = np.float32(65504)
    assert padding_after(largest, DType.FLOAT16, 3).tolist() == [65504] * 3


def test_what_a_grouped_tensor_must_not_be() -> None:
    codebook = book(2, 3, 4)
    with pytest.raises(ValueError, match="3 indices for 8 elements in units of 4"):
        GroupedTensor(indices=np.zeros(3, np.uint8), shape=(2, 4), codebook=codebook)
    with pytest.raises(ValueError, match="beyond the codebook"):
        GroupedTensor(indices=np.full(2, 3, np.uint8), shape=(2, 4), codebook=codebook)
    with pytest.raises(ValueError, match="floating"):
        GroupedTensor(indices=np.zeros(2, np.uint8), shape=(2, 4), codebook=codebook, dtype=DType.INT8)
    with pytest.raises(ValueError, match="two dimensions"):
        GroupedTensor(indices=np.zeros(2, np.uint8), shape=(8,), codebook=codebook, column_scan=True)
    with pytest.raises(ValueError, match="at least one unit"):
        GroupedTensor(indices=np.zeros(2, np.uint8), shape=(8,), codebook=codebook, span=0)
    with pytest.raises(TypeError, match="unsigned"):
        GroupedTensor(indices=np.zeros(2, np.int8), shape=(8,), codebook=codebook)
    with pytest.raises(ValueError, match="three-dimensional"):
        GroupedCodebook(values=np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match="finite"):
        GroupedCodebook(values=np.full((1, 1, 2), np.inf, np.float32))
    with pytest.raises(ValueError, match="representable"):
        GroupedCodebook(values=np.full((1, 1, 2), 1 / 3, np.float32), stored_as=DType.FLOAT16)


def test_limits_hold_before_grouped_tensors_are_decoded() -> None:
    given = tensor((100, 64), book(4, 16, 8), 3)
    limits = Limits(materialised_bytes=50_000)
    with nqformat.from_bytes(nqformat.save({"t": given}), limits=limits) as file:
        with pytest.raises(nqformat.LimitExceededError):
            file.get_tensor("t")
        assert np.array_equal(file.get_slice("t", 40, 44), given.decode()[40:44])


def test_an_empty_grouped_tensor() -> None:
    given = tensor((0, 5), book(2, 3, 2), 1, column_scan=True)
    assert nqformat.load(nqformat.save({"t": given}))["t"].shape == (0, 5)
