"""Every damaged file is noticed, with an error of our own classes."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

import nqformat
from nqformat import (
    BadMagicError,
    CorruptError,
    FormatError,
    LimitExceededError,
    TruncatedError,
    UnsupportedFeatureError,
    UnsupportedVersionError,
)
from nqformat.codebooks import CodebookCoding, CodebookRecord
from nqformat.cursor import encode_varint
from nqformat.deflate import deflate
from nqformat.directory import RecordKind, record_bytes
from nqformat.grouping import GroupMapping
from nqformat.header import HEADER_BYTES, Header
from nqformat.prefix_code import PrefixCode
from nqformat.streams import Codec, StreamKind, StreamRecord
from nqformat.tensor import DType, Layout
from nqformat.tensor_records import CodebookValues, ConstantFields, PackedFields, TensorRecord


def reseal(content: bytes) -> bytes:
    """Repair every checksum after a deliberate change, so that only the parser can notice it."""
    fields = bytearray(content[:28])
    directory_bytes = struct.unpack_from("<I", fields, 12)[0]
    page = 1 << ((fields[10] >> 4) + 12)
    body = content[HEADER_BYTES + directory_bytes :]
    pages = [zlib.crc32(body[i : i + page]) for i in range(0, len(body), page)]
    area = bytearray(content[HEADER_BYTES : HEADER_BYTES + directory_bytes])
    area[: 4 * len(pages)] = struct.pack(f"<{len(pages)}I", *pages)
    struct.pack_into("<Q", fields, 16, len(content))
    struct.pack_into("<I", fields, 24, zlib.crc32(area))
    return bytes(fields) + struct.pack("<I", zlib.crc32(fields)) + bytes(area) + body


def plain_directory(content: bytes) -> tuple[bytes, int]:
    """Plain directory of an `edge` file and its offset."""
    header = Header.parse(content[:HEADER_BYTES], len(content))
    start = HEADER_BYTES + 4 * header.n_pages
    return content[start : header.body_start_abs], start


def test_every_truncation_is_noticed(small_file: bytes) -> None:
    for n_bytes in range(len(small_file)):
        with pytest.raises(TruncatedError):
            nqformat.load(small_file[:n_bytes])


def test_every_single_flipped_bit_is_noticed(small_file: bytes) -> None:
    content = bytearray(small_file)
    for position in range(len(content)):
        for bit in range(8):
            content[position] ^= 1 << bit
            with pytest.raises((FormatError, UnsupportedFeatureError, UnsupportedVersionError)):
                nqformat.load(bytes(content))
            content[position] ^= 1 << bit


def test_bytes_behind_the_end_are_refused(small_file: bytes) -> None:
    with pytest.raises(CorruptError, match="declared"):
        nqformat.load(small_file + b"\0")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" * 20, b"\x89PNG\r\n\x1a\n" + bytes(60), b"{" * 64])
def test_other_files_are_no_nqz(content: bytes) -> None:
    with pytest.raises((BadMagicError, TruncatedError)):
        nqformat.load(content)


@pytest.mark.parametrize(("major", "advice"), [(7, r"7\.0.*update"), (0, r"0\.0.*convert the model again")])
def test_another_major_version_is_named_with_advice(small_file: bytes, major: int, advice: str) -> None:
    content = bytearray(small_file)
    content[8] = major
    with pytest.raises(UnsupportedVersionError, match=advice):
        nqformat.load(reseal(bytes(content)))


def test_a_later_minor_version_is_read(small_file: bytes) -> None:
    content = bytearray(small_file)
    content[9] = 200
    found = nqformat.load(reseal(bytes(content)))
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in nqformat.load(small_file).items()
    }


def test_an_unknown_critical_flag_is_refused_and_an_ancillary_one_is_not(small_file: bytes) -> None:
    content = bytearray(small_file)
    content[10] |= 0x04
    with pytest.raises(UnsupportedFeatureError, match="flags"):
        nqformat.load(reseal(bytes(content)))
    content = bytearray(small_file)
    content[11] = 0x55
    assert len(nqformat.load(reseal(bytes(content)))) == 18


def test_an_unknown_layout_leaves_the_other_tensors_readable() -> None:
    content = nqformat.save({"a": np.float32(1.5), "b": np.float32(2.5)}, edge=True)
    plain, start = plain_directory(content)
    mutant = bytearray(content)
    mutant[start + plain.index(b"\x0c\x00\x01a") - 1] = 9
    with nqformat.from_bytes(reseal(bytes(mutant))) as file:
        assert file.info("a").unsupported
        assert file.get_tensor("b") == 2.5
        with pytest.raises(UnsupportedFeatureError, match="layout 9"):
            file.get_tensor("a")


def with_directory(plain: bytes, body: bytes = b"", *, inflated_bytes: int | None = None) -> bytes:
    """A sealed file; `inflated_bytes` deflates the directory under that declared length."""
    stored = plain if inflated_bytes is None else encode_varint(inflated_bytes) + deflate(plain)
    area = bytes(4 * -(-len(body) >> 16)) + stored
    made = Header(
        minor=0,
        deflated=inflated_bytes is not None,
        directory_bytes=len(area),
        file_bytes=HEADER_BYTES + len(area) + len(body),
        directory_crc32=0,
    )
    return reseal(made.to_bytes() + area + body)


def test_an_unknown_ancillary_record_is_skipped_and_a_critical_one_refused() -> None:
    content = nqformat.save({"a": np.float32(1.5)}, edge=True)
    plain, _ = plain_directory(content)
    ancillary = encode_varint(14 << 3) + encode_varint(3) + b"abc"
    assert nqformat.load(with_directory(plain + ancillary))["a"] == 1.5
    critical = encode_varint(14 << 3 | 1) + encode_varint(3) + b"abc"
    with pytest.raises(UnsupportedFeatureError, match="record kind 14"):
        nqformat.load(with_directory(plain + critical))


def test_a_directory_bomb_is_refused_before_it_inflates() -> None:
    bomb = with_directory(bytes(1 << 20), inflated_bytes=1 << 40)
    with pytest.raises(LimitExceededError, match="declared"):
        nqformat.load(bomb)


def test_a_second_tensor_of_one_name_is_refused() -> None:
    record = TensorRecord(
        name="a",
        dtype=DType.FLOAT32,
        shape=(),
        layout=Layout.CONSTANT,
        fields=ConstantFields(element=b"\0\0\xc0?"),
    )
    first = record_bytes(RecordKind.TENSOR, record.to_bytes(""))
    assert nqformat.load(with_directory(first))["a"] == 1.5
    with pytest.raises(CorruptError, match="second tensor"):
        nqformat.load(with_directory(first + record_bytes(RecordKind.TENSOR, record.to_bytes("a"))))


@pytest.mark.parametrize("dims", [1 << 40, 1 << 50, (1 << 59) + 1])
def test_huge_declared_tensors_are_refused_without_allocating(dims: int) -> None:
    table = record_bytes(RecordKind.TABLE, PrefixCode(lengths=(), single=0).to_bytes())
    book = record_bytes(
        RecordKind.CODEBOOK,
        CodebookRecord(stored_as=DType.FLOAT32, coding=CodebookCoding.PLAIN, n_entries=1).to_bytes(),
        4,
    )
    stream = StreamRecord(kind=StreamKind.VALUES, codec=Codec.HUFFMAN, mapping=GroupMapping(), table=0)
    tensor = TensorRecord(
        name="a",
        dtype=DType.FLOAT32,
        shape=(dims,),
        layout=Layout.DENSE,
        fields=PackedFields(
            rule=CodebookValues(codebook=0), column_scan=False, n_stored=dims, value_stream=0
        ),
    )
    plain = table + book + record_bytes(RecordKind.STREAM, stream.to_bytes(), 1)
    plain += record_bytes(RecordKind.TENSOR, tensor.to_bytes(""))
    content = with_directory(plain, b"\0\0\0?\0")
    with pytest.raises(FormatError):
        nqformat.load(content)
    with nqformat.from_bytes(content) as file, pytest.raises(FormatError):
        file.get_tensor("a")
    with nqformat.from_bytes(content) as file, pytest.raises(FormatError):
        file.get_slice("a", 0, 5)


@pytest.mark.parametrize(
    "text", ['{"a":1,"a":2}', "[1]", '{"a":NaN}', "{", '{"a":' * 5000 + "1" + "}" * 5000, "\udcff"]
)
def test_bad_metadata_is_corrupt(text: str) -> None:
    encoded = text.encode(errors="surrogateescape")
    with (
        nqformat.from_bytes(
            with_directory(record_bytes(RecordKind.METADATA, b"\0", len(encoded)), encoded)
        ) as file,
        pytest.raises(CorruptError),
    ):
        file.metadata()
