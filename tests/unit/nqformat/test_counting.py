"""Counting numbers, by a table and by sorting."""

from __future__ import annotations

import numpy as np
import pytest

from nqformat.counting import distinct_counts, order0_entropy


@pytest.mark.parametrize("scale", [1, 1 << 40])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_counts_are_those_of_a_dictionary(scale: int, dtype: type[np.generic]) -> None:
    numbers = (np.random.default_rng(3).integers(0, 50, 400) * scale).astype(dtype)
    distinct, counts = distinct_counts(numbers)
    expected: dict[int, int] = {}
    for number in numbers.tolist():
        expected[number] = expected.get(number, 0) + 1
    assert distinct.dtype == numbers.dtype
    assert dict(zip(distinct.tolist(), counts.tolist(), strict=True)) == expected
    assert (np.diff(distinct.astype(np.int64)) > 0).all()


def test_negative_numbers_are_counted() -> None:
    distinct, counts = distinct_counts(np.array([-3, 5, -3], dtype=np.int32))
    assert distinct.tolist() == [-3, 5] and counts.tolist() == [2, 1]


def test_nothing_has_no_counts() -> None:
    distinct, counts = distinct_counts(np.zeros(0, dtype=np.int64))
    assert distinct.size == 0 and counts.size == 0


@pytest.mark.parametrize(("counts", "bits"), [([], 0.0), ([7], 0.0), ([4, 4], 8.0), ([2, 1, 1], 6.0)])
def test_entropy_of_counts(counts: list[int], bits: float) -> None:
    assert order0_entropy(np.array(counts, dtype=np.int64)) == pytest.approx(bits)
