"""Values of the reference reader: types, planes, codebooks, affine values, scales (nqz.md 3.1, 6, 7.2)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reference_codes import (
    Bits,
    Fields,
    UnsupportedFeature,
    known,
    limit,
    referred,
    require,
    supported,
    unzigzag,
)
from reference_streams import PLANE, Numbers

if TYPE_CHECKING:
    from reference_reader import NqzFile, Payload

try:
    import ml_dtypes

    BFLOAT16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
except ImportError:
    BFLOAT16 = np.dtype("<u2")

Array = NDArray[Any]
Floats = NDArray[np.float32]
Decode = Callable[[], Array]

# Element types (3.1, 6.3) -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Element:
    """An element type (3.1)."""

    name: str
    dtype: np.dtype[Any]

    @property
    def n_bytes(self) -> int:
        """Bytes of an element."""
        return self.dtype.itemsize

    @property
    def unsigned(self) -> np.dtype[Any]:
        """Unsigned integers of the same width."""
        return np.dtype(f"<u{self.n_bytes}")

    @property
    def is_float(self) -> bool:
        """Whether it is a floating-point type."""
        return "float" in self.name

    def of_bits(self, bits: Array) -> Array:
        """View unsigned integers as elements; a bool is 0 or 1 (3.1)."""
        require(self.name != "bool" or bool((bits <= 1).all()), "stored bool other than 0 and 1")
        return np.ascontiguousarray(bits, self.unsigned).view(self.dtype)

    def rounded(self, values: NDArray[np.float32]) -> Array:
        """Convert float32 values once, to nearest, ties to even (6.3)."""
        if self.name == "bfloat16":
            wide = values.view("<u4").astype("<u8")
            return self.of_bits((wide + 0x7FFF + (wide >> 16) % 2) >> 16)
        with np.errstate(over="ignore"):
            return values.astype(self.dtype)

    def widened(self, bits: Array) -> NDArray[np.float32]:
        """Widen bit patterns to float32 exactly (6.1)."""
        if self.name == "bfloat16":
            return (bits.astype("<u4") << 16).view("<f4")
        return bits.view(self.dtype).astype("<f4")


ELEMENTS = {
    1: Element("bool", np.dtype("?")),
    2: Element("uint8", np.dtype("<u1")),
    3: Element("int8", np.dtype("<i1")),
    4: Element("uint16", np.dtype("<u2")),
    5: Element("int16", np.dtype("<i2")),
    6: Element("uint32", np.dtype("<u4")),
    7: Element("int32", np.dtype("<i4")),
    8: Element("uint64", np.dtype("<u8")),
    9: Element("int64", np.dtype("<i8")),
    10: Element("float16", np.dtype("<f2")),
    11: Element("bfloat16", BFLOAT16),
    12: Element("float32", np.dtype("<f4")),
    13: Element("float64", np.dtype("<f8")),
}


@dataclass(frozen=True, slots=True)
class Head:
    """The common fields of a TENSOR record (7.1)."""

    layout: int
    element_number: int
    name: str
    dims: tuple[int, ...]

    @property
    def element(self) -> Element:
        """Element type."""
        return known(ELEMENTS, self.element_number, "element type")

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.dims)


# Vectors of numbers with their own bits (7.2) ---------------------------------------------------------------


def read_vector(body: Fields, element: Element, count: int, payload: Payload, file: NqzFile) -> Decode:
    """Read plane_mask and streams of count elements; return the function that decodes their bit patterns."""
    mask = body.u8()
    require(mask < 2**element.n_bytes, "plane beyond the element")
    planes = {i: file.slice(body, PLANE, count) for i in range(8) if mask >> i & 1}
    plain_bytes = (element.n_bytes - len(planes)) * count
    require(payload.n_bytes == plain_bytes, "payload of another length")

    def decode() -> Array:
        plain = Fields(payload.read())
        if not planes:
            return np.frombuffer(plain.take(plain_bytes), element.unsigned)
        columns = np.empty((count, element.n_bytes), np.uint8)
        for i in range(element.n_bytes):
            columns[:, i] = planes[i].bytes() if i in planes else np.frombuffer(plain.take(count), np.uint8)
        bits = columns.view(element.unsigned).reshape(-1)
        if element.is_float:
            one, top = element.unsigned.type(1), element.unsigned.type(8 * element.n_bytes - 1)
            bits = bits >> one | bits << top
        return bits

    return decode


# Codebooks (6.1) --------------------------------------------------------------------------------------------


class Codebook(NamedTuple):
    """A CODEBOOK record, and the function that decodes groups x entries x width float32 numbers."""

    groups: int
    width: int
    decode: Decode


def plain_entries(data: bytes, element: Element, groups: int, entries: int) -> Array:
    """Return the bit patterns of codebook coding 0 (6.1)."""
    return np.frombuffer(data, element.unsigned)


def ascending_entries(data: bytes, element: Element, groups: int, entries: int) -> Array:
    """Return the bit patterns of codebook coding 1 (6.1)."""
    width = 8 * element.n_bytes
    sign = 2 ** (width - 1)
    bits = Bits(data)
    order = bits.number(5)
    keys = []
    for _ in range(groups):
        keys.append(bits.number(width))
        for _ in range(entries - 1):
            keys.append(keys[-1] + 1 + bits.exp_golomb(order))
            require(keys[-1] < 2**width, "key beyond its width")
    bits.end()
    return np.array([key - sign if key >= sign else 2 * sign - 1 - key for key in keys], element.unsigned)


CODEBOOK_CODINGS = {0: plain_entries, 1: ascending_entries}
MOST_ENTRIES = {0: (1 << 20, 1 << 24), 1: (4096, 65536)}


def read_codebook(body: Fields, payload: Payload) -> Codebook:
    """Read a CODEBOOK record (6.1)."""
    head, *sizes = body.u8(), body.varint(), body.varint(), body.varint()
    coding, (groups, entries, width), n_numbers = head >> 4, sizes, math.prod(sizes)
    bit_patterns = known(CODEBOOK_CODINGS, coding, "codebook coding")
    element = known(ELEMENTS, head % 16, "element type")
    require(element.is_float and element.n_bytes <= 4, "codebook entries of another type")
    require(n_numbers > 0, "codebook of nothing")
    limit(entries, MOST_ENTRIES[coding][0], "entries of a codebook")
    limit(n_numbers, MOST_ENTRIES[coding][1], "numbers of a codebook")
    require(coding == 0 or width == 1, "ascending vectors")
    plain_bytes = n_numbers * element.n_bytes
    require(coding != 0 or payload.n_bytes == plain_bytes, "codebook payload of another length")

    def decode() -> Array:
        found = element.widened(bit_patterns(payload.read(), element, groups, entries))
        require(bool(np.isfinite(found).all()), "codebook entry is not finite")
        return found.reshape(sizes)

    return Codebook(groups, width, decode)


# Value rules (6, 7.4) ---------------------------------------------------------------------------------------


class ValueRule(NamedTuple):
    """Elements that a number stands for, and the function from numbers and units to rows of values."""

    width: int
    values: Callable[[Numbers, Numbers], Array]


def read_codebook_rule(body: Fields, head: Head, file: NqzFile) -> ValueRule:
    """Read a value rule that names a codebook (6.1, 7.4)."""
    named = referred(file.codebooks, body)
    require(head.element.is_float, "codebook values of another type")
    book = supported(named)
    span = body.varint() if book.groups > 1 else 1
    require(span >= 1, "span of groups is 0")

    def values(numbers: Numbers, units: Numbers) -> Array:
        entries = book.decode()
        require(bool((numbers < entries.shape[1]).all()), "index beyond the codebook")
        return np.asarray(entries[units // span % book.groups, numbers])

    return ValueRule(book.width, values)


def read_affine_rule(body: Fields, head: Head, zero_is_implied: bool) -> ValueRule:
    """Read the fields of affine values (6.2)."""
    element = head.element
    step, offset, order = body.f32(), body.f32(), body.u8()
    require(math.isfinite(step) and math.isfinite(offset), "step or offset is not finite")
    integers = not element.is_float
    require(
        not integers or (element.name != "bool" and step == 1 and offset == 0), "affine values of this type"
    )
    if order > 1:
        raise UnsupportedFeature(f"order {order} of affine values")
    k_min = body.signed() if order == 0 else 0
    require(abs(k_min) < 1 << 24, "k_min out of range")

    def values(numbers: Numbers, units: Numbers) -> Array:
        if order == 0:
            ks = [k_min + number for number in numbers.tolist()]
        else:
            ks = [unzigzag(number + zero_is_implied) for number in numbers.tolist()]
        require(all(abs(k) < 1 << 24 for k in ks), "k out of range")
        k = np.array(ks, np.int64)[:, None]
        if integers:
            range_of = np.iinfo(element.dtype)
            require(all(range_of.min <= k <= range_of.max for k in ks), "k out of the range of its type")
            return k.astype(element.dtype)
        with np.errstate(over="ignore"):
            return (np.float64(step) * k + offset).astype("<f4")

    return ValueRule(1, values)


# Scales (6.4) -----------------------------------------------------------------------------------------------

Scaling = Callable[[Floats, Numbers], Floats]


def read_scales(body: Fields, head: Head, payload: Payload, file: NqzFile) -> Callable[[], Scaling]:
    """Read a scale vector; return the function that decodes it and gives that of values and positions."""
    require(head.element.is_float, "scales of another type")
    scale_type = body.u8()
    require(scale_type in (10, 11, 12), "scales are of another type")
    element = ELEMENTS[scale_type]
    span, n_scales = body.varint(), body.varint()
    most = max(head.elements, 1)
    require(1 <= span <= most and 1 <= n_scales <= most, "span or number of scales")
    vector = read_vector(body, element, n_scales, payload, file)

    def decode() -> Scaling:
        file.charge(n_scales * element.n_bytes)
        scales = element.widened(vector())
        require(bool((np.isfinite(scales) & (scales > 0)).all()), "scale that is not finite and above zero")

        def scaled(values: Floats, positions: Numbers) -> Floats:
            with np.errstate(over="ignore", under="ignore"):
                return values * scales[positions // span % n_scales]

        return scaled

    return decode
