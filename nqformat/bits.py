"""Least-significant-bit-first bit strings of small structures: code tables, codebook deltas (spec 3.3)."""

from __future__ import annotations

from .errors import CorruptError


class BitWriter:
    """Collects bits, first bit in the lowest bit of the first byte."""

    __slots__ = ("_n_bits", "_value")

    def __init__(self) -> None:
        self._value = 0
        self._n_bits = 0

    def put(self, value: int, width: int) -> None:
        """Append the `width` low bits of `value`, lowest first."""
        self._value |= (value & ((1 << width) - 1)) << self._n_bits
        self._n_bits += width

    def put_text(self, bits: str) -> None:
        """Append a codeword written as text, first character first."""
        for bit in bits:
            self.put(bit == "1", 1)

    def put_exp_golomb(self, number: int, order: int) -> None:
        """Append an Exp-Golomb code of `order`: n zeros, a one, then n + order bits (spec 3.3)."""
        shifted = number + (1 << order)
        n_extra = shifted.bit_length() - 1
        self.put(0, n_extra - order)
        self.put(1, 1)
        self.put(shifted - (1 << n_extra), n_extra)

    def to_bytes(self) -> bytes:
        """Return the bits, padded with zeros to whole bytes."""
        return self._value.to_bytes((self._n_bits + 7) // 8, "little")


class BitReader:
    """Reads what :class:`BitWriter` wrote; the bits live in one Python integer, so keep inputs small."""

    __slots__ = ("_left", "_section", "_value")

    def __init__(self, buffer: bytes, section: str) -> None:
        self._value = int.from_bytes(buffer, "little")
        self._left = 8 * len(buffer)
        self._section = section

    def get(self, width: int) -> int:
        """Read `width` bits, lowest first."""
        if width > self._left:
            raise CorruptError("bit string ends early", section=self._section)
        value = self._value & ((1 << width) - 1)
        self._value >>= width
        self._left -= width
        return value

    def get_exp_golomb(self, order: int, max_bits: int = 40) -> int:
        """Read an Exp-Golomb code of `order`; CorruptError beyond `max_bits` value bits."""
        window = self._value & ((2 << max_bits) - 1)
        n_zeros = (window & -window).bit_length() - 1
        n_extra = order + n_zeros
        if n_zeros < 0 or (n_zeros > 0 and n_extra > max_bits):
            raise CorruptError("Exp-Golomb code is too long or ends early", section=self._section)
        n_bits = n_zeros + 1 + n_extra
        if n_bits > self._left:
            raise CorruptError("bit string ends early", section=self._section)
        number = (self._value >> (n_zeros + 1)) & ((1 << n_extra) - 1)
        self._value >>= n_bits
        self._left -= n_bits
        return number + (1 << n_extra) - (1 << order)

    def finish(self) -> None:
        """Require that fewer than eight bits are left and that all are zero."""
        if self._left >= 8 or self._value:
            raise CorruptError("bit string has bytes or bits left over", section=self._section)
