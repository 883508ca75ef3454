"""Byte cursors: varints and fixed fields of the directory (spec 3.2)."""

from __future__ import annotations

import struct

from .errors import CorruptError, TruncatedError

MAX_VARINT = (1 << 63) - 1


def encode_varint(number: int) -> bytes:
    """Return `number` (0 <= number < 2**63) as a minimal LEB128 varint."""
    if not 0 <= number <= MAX_VARINT:
        raise ValueError(f"{number} does not fit a varint")
    out = bytearray()
    while number >= 0x80:
        out.append((number & 0x7F) | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode_zigzag(number: int) -> bytes:
    """Return a signed number as a varint: 0, -1, 1, -2, ... become 0, 1, 2, 3, ..."""
    return encode_varint(number * 2 if number >= 0 else -number * 2 - 1)


class ByteCursor:
    """Reads fields from a byte string and reports faults with section and file offset.

    Parameters
    ----------
    buffer : bytes-like
    section : str
        Name used in error messages.
    base_abs : int or None
        File offset of the first byte; None where the bytes are inflated and have none.
    """

    __slots__ = ("_base_abs", "_buffer", "_off", "section")

    def __init__(self, buffer: bytes | memoryview, section: str, base_abs: int | None = None) -> None:
        self._buffer = buffer
        self._off = 0
        self._base_abs = base_abs
        self.section = section

    @property
    def remaining(self) -> int:
        """Bytes not read yet."""
        return len(self._buffer) - self._off

    @property
    def offset_abs(self) -> int | None:
        """File offset of the next byte, if it has one."""
        return None if self._base_abs is None else self._base_abs + self._off

    def corrupt(self, detail: str) -> CorruptError:
        """Return a CorruptError that points here."""
        return CorruptError(detail, section=self.section, offset_abs=self.offset_abs)

    def take(self, n_bytes: int) -> bytes:
        """Read exactly `n_bytes`."""
        if n_bytes > self.remaining:
            raise TruncatedError(
                f"{n_bytes} bytes wanted, {self.remaining} left",
                section=self.section,
                offset_abs=self.offset_abs,
            )
        start = self._off
        self._off += n_bytes
        return bytes(self._buffer[start : self._off])

    def u8(self) -> int:
        """Read one byte."""
        return self.take(1)[0]

    def u32(self) -> int:
        """Read one little-endian uint32."""
        number: int = struct.unpack("<I", self.take(4))[0]
        return number

    def f32(self) -> float:
        """Read one little-endian float32."""
        number: float = struct.unpack("<f", self.take(4))[0]
        return number

    def varint(self) -> int:
        """Read one minimal LEB128 varint below 2**63."""
        number = 0
        for shift in range(0, 63, 7):
            byte = self.u8()
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                if byte == 0 and shift:
                    raise self.corrupt("varint is not minimal")
                return number
        raise self.corrupt("varint exceeds 63 bits")

    def zigzag(self) -> int:
        """Read one zig-zag coded signed varint."""
        number = self.varint()
        return -(number + 1) // 2 if number & 1 else number // 2

    def sub(self, n_bytes: int, section: str) -> ByteCursor:
        """Read `n_bytes` as a cursor of their own."""
        base = self.offset_abs
        return ByteCursor(self.take(n_bytes), section, base)

    def finish(self) -> None:
        """Require that every byte was read."""
        if self.remaining:
            raise self.corrupt(f"{self.remaining} bytes left over")
