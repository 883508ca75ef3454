"""Arrays that lie in a temporary file."""

from __future__ import annotations

import tempfile
from typing import Any

import numpy as np
import pytest

from nqconvert.array_spool import ArraySpool
from nqformat.errors import ConversionError


@pytest.mark.parametrize("budget", [0, 100, 1 << 20])
def test_arrays_come_back_as_they_were(budget: int) -> None:
    rng = np.random.default_rng(0)
    arrays = [
        rng.normal(size=(7, 9)),
        rng.normal(size=(6, 5)).astype(np.float32).T,
        np.arange(3, dtype=np.int8),
        np.zeros((0, 4), np.float32),
        np.float64(5.0).reshape(()),
    ]
    spool = ArraySpool(budget_bytes=budget)
    kept = [spool.put(array) for array in arrays]
    for _ in range(2):
        for array, found in zip(arrays, kept, strict=True):
            made = spool.get(found)
            assert made.dtype == array.dtype and made.shape == array.shape
            np.testing.assert_array_equal(made, array)


def test_what_is_dropped_makes_room() -> None:
    spool = ArraySpool(budget_bytes=80)
    first, second = spool.put(np.arange(10)), spool.put(np.arange(10))
    assert first.array is not None and second.array is None
    spool.drop(first)
    assert spool.put(np.ones(10)).array is not None
    spool.drop(second)
    third, fourth = spool.put(np.arange(10) * 2), spool.put(np.arange(10) * 3)
    assert third.start == second.start != fourth.start
    np.testing.assert_array_equal(spool.get(third), np.arange(10) * 2)
    np.testing.assert_array_equal(spool.get(fourth), np.arange(10) * 3)


def test_small_arrays_stay_and_do_not_count() -> None:
    spool = ArraySpool(budget_bytes=80, small_bytes=16)
    small = [spool.put(np.arange(2)) for _ in range(20)]
    spool.drop(small[0])
    assert all(kept.array is not None for kept in small)
    assert spool.put(np.arange(10)).array is not None and spool.put(np.arange(10)).array is None


def test_a_file_that_cannot_be_written_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    spool = ArraySpool(budget_bytes=0)
    kept = spool.put(np.arange(100))

    class Full:
        def seek(self, place: int) -> None:
            pass

        def write(self, content: Any) -> int:
            raise OSError(28, "No space left on device")

        def readinto(self, content: Any) -> int:
            return 0

    monkeypatch.setattr(spool, "_file", Full())
    with pytest.raises(ConversionError, match="No space left on device; set TMPDIR"):
        spool.put(np.arange(100))
    with pytest.raises(ConversionError, match="shorter than"):
        spool.get(kept)

    def missing(**options: Any) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(tempfile, "TemporaryFile", missing)
    with pytest.raises(ConversionError, match=r"No such file or directory; set TMPDIR"):
        ArraySpool(budget_bytes=0).put(np.arange(100))
