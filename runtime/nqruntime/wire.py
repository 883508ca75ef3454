"""Reading and writing the protobuf wire format, as far as ONNX needs it.

Every message is a run of fields; a field is a varint key (field number and wire type) and a value. Bytes
are untrusted: each fault is a FormatError, and a budget of elements bounds what a message can allocate.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nqformat.errors import CorruptError, LimitExceededError, TruncatedError

VARINT = 0
FIXED64 = 1
BYTES = 2
FIXED32 = 5

_MAX_VARINT_BYTES = 10
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
_SECTION = "GRAPH"


class ElementBudget:
    """Counts the messages, strings and numbers taken from one graph; a graph that holds more is refused."""

    def __init__(self, n_elements: int) -> None:
        self._n_elements = n_elements
        self._n_left = n_elements

    def spend(self, n_elements: int = 1) -> None:
        """Count `n_elements` more; raise LimitExceededError when the budget is used up."""
        self._n_left -= n_elements
        if self._n_left < 0:
            raise LimitExceededError(f"the graph has more than {self._n_elements} elements", section=_SECTION)


def read_fields(message: memoryview, budget: ElementBudget) -> Iterator[tuple[int, int, int | memoryview]]:
    """Yield (field number, wire type, value) of each field of a message.

    Yields
    ------
    value : int or memoryview
        An unsigned integer for VARINT, the bytes of the field for every other wire type.

    Raises
    ------
    TruncatedError, CorruptError, LimitExceededError
    """
    position = 0
    while position < len(message):
        key, position = _read_varint(message, position)
        number, wire_type = key >> 3, key & 7
        if not 0 < number < 1 << 29:
            raise CorruptError(f"protobuf field number {number} is not allowed", section=_SECTION)
        budget.spend()
        if wire_type == VARINT:
            varint, position = _read_varint(message, position)
            yield number, VARINT, varint
            continue
        if wire_type == BYTES:
            n_bytes, position = _read_varint(message, position)
        elif wire_type in _FIXED_BYTES:
            n_bytes = _FIXED_BYTES[wire_type]
        else:
            raise CorruptError(f"protobuf wire type {wire_type} is not allowed", section=_SECTION)
        if n_bytes > len(message) - position:
            raise TruncatedError(f"protobuf field {number} ends beyond its message", section=_SECTION)
        yield number, wire_type, message[position : position + n_bytes]
        position += n_bytes


def _read_varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return the 64-bit unsigned varint at `position` and the position behind it."""
    number = 0
    for i in range(_MAX_VARINT_BYTES):
        if position + i >= len(message):
            raise TruncatedError("protobuf varint ends beyond its message", section=_SECTION)
        byte = message[position + i]
        number |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return number & 0xFFFF_FFFF_FFFF_FFFF, position + i + 1
    raise CorruptError("protobuf varint longer than 10 bytes", section=_SECTION)


def to_int64(number: int) -> int:
    """Read an unsigned 64-bit varint as two's complement."""
    return number - (1 << 64) if number >= 1 << 63 else number


def expect_varint(value: int | memoryview, what: str) -> int:
    """Return the integer of a VARINT field."""
    if isinstance(value, int):
        return value
    raise CorruptError(f"{what} has the wrong protobuf wire type", section=_SECTION)


def expect_bytes(value: int | memoryview, wire_type: int, what: str) -> memoryview:
    """Return the bytes of a BYTES field."""
    if wire_type == BYTES and not isinstance(value, int):
        return value
    raise CorruptError(f"{what} has the wrong protobuf wire type", section=_SECTION)


def expect_text(value: int | memoryview, wire_type: int, what: str) -> str:
    """Return the UTF-8 text of a BYTES field."""
    try:
        return str(expect_bytes(value, wire_type, what), "utf-8")
    except UnicodeDecodeError:
        raise CorruptError(f"{what} is not UTF-8", section=_SECTION) from None


def expect_float(value: int | memoryview, wire_type: int, what: str) -> float:
    """Return the number of a FIXED32 field."""
    if wire_type != FIXED32 or isinstance(value, int):
        raise CorruptError(f"{what} has the wrong protobuf wire type", section=_SECTION)
    return float(np.frombuffer(value, dtype="<f4")[0])


def read_varints(value: int | memoryview, wire_type: int, budget: ElementBudget, what: str) -> list[int]:
    """Return the signed integers of a repeated field, packed or not."""
    if isinstance(value, int):
        return [to_int64(value)]
    packed = expect_bytes(value, wire_type, what)
    numbers = []
    position = 0
    while position < len(packed):
        number, position = _read_varint(packed, position)
        budget.spend()
        numbers.append(to_int64(number))
    return numbers


def read_fixed(value: int | memoryview, wire_type: int, dtype: str, what: str) -> np.ndarray:
    """Return the numbers of a repeated fixed-width field, packed or not.

    Parameters
    ----------
    dtype : {"<f4", "<f8"}
    """
    width = np.dtype(dtype).itemsize
    if isinstance(value, int) or wire_type not in (BYTES, FIXED32 if width == 4 else FIXED64):
        raise CorruptError(f"{what} has the wrong protobuf wire type", section=_SECTION)
    if len(value) % width:
        raise TruncatedError(f"{what} holds a fraction of a number", section=_SECTION)
    return np.frombuffer(value, dtype=dtype)


def varint_bytes(number: int) -> bytes:
    """Encode a non-negative integer below 2**64."""
    encoded = bytearray()
    while number >= 0x80:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def varint_field(number: int, value: int) -> bytes:
    """Encode a VARINT field."""
    return varint_bytes(number << 3 | VARINT) + varint_bytes(value)


def bytes_field(number: int, content: bytes) -> bytes:
    """Encode a BYTES field: a string, bytes or a message."""
    return varint_bytes(number << 3 | BYTES) + varint_bytes(len(content)) + content
