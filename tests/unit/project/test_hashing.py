"""Hashed tensors (spec 7.7)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import nqformat
from nqformat import (
    DType,
    HashedTensor,
    Layout,
    LimitExceededError,
    Limits,
    RawTensor,
    ViewSource,
    ViewTensor,
)
from nqformat.hashing import buckets_of, hash_positions, mix

SPEC = Path(__file__).parents[3] / "spec" / "nqz.md"
MASK = (1 << 32) - 1


def mixed(x: int) -> int:
    """Section 7.7 in Python integers."""
    x ^= x >> 16
    x = x * 0x85EBCA6B & MASK
    x ^= x >> 13
    x = x * 0xC2B2AE35 & MASK
    return x ^ x >> 16


def hashed(p: int, seed: int) -> int:
    return mixed(p & MASK ^ mixed(p >> 32 ^ seed))


def test_the_mixing_function_is_that_of_the_specification() -> None:
    words = np.random.default_rng(0).integers(0, 1 << 32, 500).astype(np.uint32)
    assert mix(words).tolist() == [mixed(int(word)) for word in words]
    positions = np.random.default_rng(1).integers(0, 1 << 62, 500)
    assert hash_positions(positions, 12345).tolist() == [hashed(int(p), 12345) for p in positions]
    for x, value in re.findall(r"mix\((\d)\) = (0x[0-9A-F]+|0)", SPEC.read_text()):
        assert mixed(int(x)) == int(value, 16)


def test_the_test_values_of_the_specification() -> None:
    rows = re.findall(r"^\| ([0-9^ +-]+) \| (0x[0-9A-F]{8}) \| (\d+) \| (yes|no) \|$", SPEC.read_text(), re.M)
    assert len(rows) == 8
    for text, value, bucket, flipped in rows:
        p = sum(
            sign * (2 ** int(term[2:]) if term.startswith("2^") else int(term))
            for sign, term in re.findall(r"([+-]?) ?([0-9^]+)", text)
            for sign in [-1 if sign == "-" else 1]
        )
        [h] = hash_positions(np.array([p]), 7).tolist()
        assert h == int(value, 16)
        assert buckets_of(np.array([h], dtype=np.uint32), 1000).tolist() == [int(bucket)]
        assert (h & 1 == 1) == (flipped == "yes")


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT64, DType.INT16])
def test_elements_are_those_of_their_buckets(dtype: DType) -> None:
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 1 << 15, 30).astype(f"<u{dtype.itemsize}").view(dtype.storage_dtype)
    signs = dtype.is_float
    tensors = {
        "v": RawTensor(bits=bits.reshape(5, 6), dtype=dtype),
        "t": HashedTensor(source="v", shape=(20, 3, 7), seed=4, signs=signs),
    }
    wanted = np.zeros(420, dtype=f"<u{dtype.itemsize}")
    for p in range(wanted.size):
        h = hashed(p, 4)
        wanted[p] = int(bits.view(wanted.dtype)[h * 30 >> 32])
        if signs and h & 1:
            wanted[p] ^= wanted.dtype.type(1 << (8 * dtype.itemsize - 1))
    with nqformat.from_bytes(nqformat.save(tensors), bfloat16="uint16") as file:
        assert file.get_tensor("t").tobytes() == wanted.tobytes()
        rows = file.get_slice("t", 5, 9)
        assert rows.shape == (4, 3, 7)
        assert rows.tobytes() == wanted[105:189].tobytes()
        info = file.info("t")
        assert (info.layout, info.sources, info.dtype) == (Layout.HASHED, ("v",), dtype)
    assert tensors["t"].assemble(bits).tobytes() == wanted.tobytes()


def test_buckets_and_signs_are_spread_evenly() -> None:
    h = hash_positions(np.arange(200_000), 1)
    buckets = buckets_of(h, 100)
    counts = np.bincount(buckets, minlength=100)
    assert abs(counts - 2000).max() < 5 * 2000**0.5
    ups = np.bincount(buckets, weights=h & 1, minlength=100)
    assert abs(ups - counts / 2).max() < 5 * 500**0.5


def test_what_a_hashed_tensor_must_not_be() -> None:
    values = np.ones(4, np.float32)
    view = ViewTensor(sources=(ViewSource(name="v", start=0, stop=2),), permutation=(0,), shape=(2,))
    for tensors, message in (
        ({"t": HashedTensor(source="v", shape=(2,))}, "no stored tensor"),
        ({"v": values, "u": view, "t": HashedTensor(source="u", shape=(2,))}, "no stored tensor"),
        ({"v": values[:0], "t": HashedTensor(source="v", shape=(2,))}, "which has 0"),
        ({"v": np.arange(3), "t": HashedTensor(source="v", shape=(2,))}, "no signs"),
    ):
        with pytest.raises(ValueError, match=message):
            nqformat.save(tensors)
    with pytest.raises(ValueError, match="32 bits"):
        HashedTensor(source="v", shape=(2,), seed=1 << 32)


def test_a_huge_hashed_tensor_is_refused_but_its_rows_are_read() -> None:
    tensors = {"v": np.ones(4, np.float32), "t": HashedTensor(source="v", shape=(1 << 40, 8))}
    with nqformat.from_bytes(nqformat.save(tensors), limits=Limits(materialised_bytes=1 << 20)) as file:
        with pytest.raises(LimitExceededError):
            file.get_tensor("t")
        with pytest.raises(LimitExceededError):
            file.get_slice("t", 0, 1 << 30)
        assert abs(file.get_slice("t", (1 << 40) - 3, 1 << 40)).tolist() == [[1.0] * 8] * 3
