from __future__ import annotations

import pytest

from nqformat.errors import CorruptError, LimitExceededError, TruncatedError
from nqruntime.wire import (
    ElementBudget,
    bytes_field,
    read_fields,
    read_varints,
    to_int64,
    varint_bytes,
    varint_field,
)


def fields_of(message: bytes, n_elements: int = 100) -> list[tuple[int, int, object]]:
    found = read_fields(memoryview(message), ElementBudget(n_elements))
    return [(n, w, v if isinstance(v, int) else bytes(v)) for n, w, v in found]


def test_the_example_of_the_protobuf_documentation_reads_as_150():
    assert fields_of(bytes.fromhex("089601")) == [(1, 0, 150)]


def test_a_string_field_gives_its_bytes():
    assert fields_of(bytes.fromhex("120774657374696e67")) == [(2, 2, b"testing")]


@pytest.mark.parametrize("number", [0, 1, 127, 128, 300, 2**32, 2**63, 2**64 - 1])
def test_varints_survive_writing_and_reading(number):
    assert fields_of(varint_field(3, number)) == [(3, 0, number)]


def test_written_bytes_fields_are_read_back():
    assert fields_of(bytes_field(16, b"abc") + varint_field(1, 7)) == [(16, 2, b"abc"), (1, 0, 7)]


def test_ten_byte_varints_are_negative_numbers():
    number = fields_of(b"\x08" + b"\xff" * 9 + b"\x01")[0][2]
    assert to_int64(number) == -1


def test_packed_and_single_varints_read_alike():
    packed = memoryview(varint_bytes(5) + varint_bytes(2**64 - 2))
    assert read_varints(packed, 2, ElementBudget(9), "x") == [5, -2]
    assert read_varints(5, 0, ElementBudget(9), "x") == [5]


@pytest.mark.parametrize("message", ["08", "0880", "12", "1205616263", "0d000000", "0900000000000000"])
def test_messages_that_end_early_are_truncated(message):
    with pytest.raises(TruncatedError):
        fields_of(bytes.fromhex(message))


@pytest.mark.parametrize(
    "message",
    ["0b", "0c", "0e", "0f", "0001", "08" + "ff" * 10 + "01"],
    ids=["group start", "group end", "wire type 6", "wire type 7", "field zero", "varint of 11 bytes"],
)
def test_malformed_messages_are_corrupt(message):
    with pytest.raises(CorruptError):
        fields_of(bytes.fromhex(message))


def test_a_message_with_more_fields_than_the_budget_is_refused():
    assert len(fields_of(b"\x08\x00" * 100)) == 100
    with pytest.raises(LimitExceededError, match="more than 100"):
        fields_of(b"\x08\x00" * 101)
