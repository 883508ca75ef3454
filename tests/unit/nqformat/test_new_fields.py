"""Fields of scales, groups, vectors and hashed tensors that contradict the rest are refused."""

from __future__ import annotations

import struct

import pytest

from nqformat import CorruptError, DType, LimitExceededError, UnsupportedFeatureError
from nqformat.codebooks import CodebookCoding, CodebookRecord
from nqformat.cursor import ByteCursor, encode_varint
from nqformat.raw_records import DirectoryCounts, read_scales
from nqformat.tensor_records import CodebookValues, read_tensor_record
from nqformat.view_records import read_hashed


def counts(*codebooks: CodebookRecord | str) -> DirectoryCounts:
    return DirectoryCounts(codebooks=codebooks, streams=1, tensors=1)


def varints(*numbers: int) -> bytes:
    return b"".join(encode_varint(n) for n in numbers)


@pytest.mark.parametrize(
    "body, dtype",
    [
        (bytes([12, 1, 3, 0]), DType.INT8),
        (bytes([13, 1, 3, 0]), DType.FLOAT32),
        (bytes([99, 1, 3, 0]), DType.FLOAT32),
        (bytes([12, 0, 3, 0]), DType.FLOAT32),
        (bytes([12, 13, 3, 0]), DType.FLOAT32),
        (bytes([12, 1, 0, 0]), DType.FLOAT32),
        (bytes([12, 1, 13, 0]), DType.FLOAT32),
        (bytes([11, 1, 3, 4]), DType.FLOAT32),
        (bytes([11, 1, 3, 1, 7]), DType.FLOAT32),
    ],
)
def test_scales(body: bytes, dtype: DType) -> None:
    assert read_scales(ByteCursor(bytes([12, 4, 3, 0]), "T"), DType.FLOAT16, 12, counts()).payload_bytes == 12
    with pytest.raises(CorruptError):
        read_scales(ByteCursor(body, "T"), dtype, 12, counts())


def book(groups: int, entries: int, width: int) -> CodebookRecord:
    return CodebookRecord(
        stored_as=DType.FLOAT32,
        coding=CodebookCoding.PLAIN,
        n_entries=entries,
        n_groups=groups,
        width=width,
    )


def tensor(options: int, *fields: int, layout: int = 2) -> ByteCursor:
    body = bytes([layout | 2 << 4, 12]) + varints(0, 1) + b"t" + varints(4, 6) + bytes([options])
    return ByteCursor(body + varints(*fields), "T")


def test_groups_and_vectors() -> None:
    read = read_tensor_record(tensor(0, 0, 3, 0), "", counts(book(2, 5, 4)), 0, 0)
    assert read.fields.rule == CodebookValues(codebook=0, groups=2, width=4, span=3)
    assert read.n_units == 6
    with pytest.raises(CorruptError, match="spans nothing"):
        read_tensor_record(tensor(0, 0, 0, 0), "", counts(book(2, 5, 4)), 0, 0)
    with pytest.raises(CorruptError, match="several elements"):
        read_tensor_record(tensor(4, 0, 2, 0), "", counts(book(1, 5, 4)), 0, 0)
    with pytest.raises(CorruptError, match="7 nonzeros in 6 places"):
        read_tensor_record(tensor(0, 0, 7, 0, 0, layout=3), "", counts(book(1, 5, 4)), 0, 0)
    assert "reserved" in read_tensor_record(tensor(0, 0, 0), "", counts("reserved"), 0, 0).unsupported
    assert "options" in read_tensor_record(tensor(0x20, 0, 0), "", counts(book(1, 5, 1)), 0, 0).unsupported


@pytest.mark.parametrize("shape", [(1, 1 << 21, 1), (1 << 12, 1 << 12, 2), (1 << 62, 5, 8)])
def test_codebooks_beyond_the_limits(shape: tuple[int, int, int]) -> None:
    with pytest.raises(LimitExceededError, match="codebook of"):
        CodebookRecord.read(ByteCursor(bytes([12]) + varints(*shape), "C"), 0, 4)


@pytest.mark.parametrize("shape", [(0, 5, 1), (1, 0, 1), (1, 5, 0)])
def test_codebooks_of_impossible_shapes(shape: tuple[int, int, int]) -> None:
    with pytest.raises(CorruptError, match="codebook of shape"):
        CodebookRecord.read(ByteCursor(bytes([12]) + varints(*shape), "C"), 0, 4)


@pytest.mark.parametrize("shape", [(1, 5000, 1), (20, 4000, 1)])
def test_delta_coded_codebooks_beyond_the_limits(shape: tuple[int, int, int]) -> None:
    with pytest.raises(LimitExceededError, match="codebook of"):
        CodebookRecord.read(ByteCursor(bytes([12 | 1 << 4]) + varints(*shape), "C"), 0, 4)


def test_delta_coded_vectors_are_forbidden() -> None:
    with pytest.raises(CorruptError, match="delta-coded"):
        CodebookRecord.read(ByteCursor(bytes([12 | 1 << 4]) + varints(1, 4, 2), "C"), 0, 4)


def test_hashed() -> None:
    seed = struct.pack("<I", 9)
    assert read_hashed(ByteCursor(b"\1\0" + seed, "T"), DType.FLOAT32, counts()).seed == 9
    with pytest.raises(UnsupportedFeatureError):
        read_hashed(ByteCursor(b"\2\0" + seed, "T"), DType.FLOAT32, counts())
    with pytest.raises(CorruptError, match="signs"):
        read_hashed(ByteCursor(b"\1\0" + seed, "T"), DType.INT32, counts())
    with pytest.raises(CorruptError, match="does not stand before"):
        read_hashed(ByteCursor(b"\0\1" + seed, "T"), DType.FLOAT32, counts())
