"""Tensors that stand inside a graph: reading their values from any of ONNX's storage forms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nqformat.dtypes import DType
from nqformat.errors import CorruptError, UnsupportedFeatureError
from nqformat.limits import MAX_RANK

from .element_types import element_type

_SECTION = "GRAPH"
_MAX_DIMENSION = 1 << 40
_WIDE_INTEGER = {DType.INT64: "int64_data", DType.UINT32: "uint64_data", DType.UINT64: "uint64_data"}
_FLOAT_FIELDS = {DType.FLOAT32: "float_data", DType.FLOAT64: "double_data"}


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineTensor:
    """A TensorProto whose values are read when they are asked for.

    Attributes
    ----------
    name : str
    element_number : int
    shape : tuple of int
    raw : bytes or None
        Little-endian elements in C order.
    floats : dict of str to ndarray
        Values of ``float_data`` and ``double_data``, where present.
    integers : dict of str to list of int
        Values of ``int32_data``, ``int64_data`` and ``uint64_data``, where present.
    n_strings : int
        Number of strings, which are not kept.
    """

    name: str
    element_number: int
    shape: tuple[int, ...]
    raw: bytes | None
    floats: dict[str, np.ndarray]
    integers: dict[str, list[int]]
    n_strings: int = 0

    def __post_init__(self) -> None:
        if any(not 0 <= size < _MAX_DIMENSION for size in self.shape):
            raise CorruptError(f"tensor {self.name!r} has shape {self.shape}", section=_SECTION)

    @property
    def n_elements(self) -> int:
        """Product of the dimensions."""
        return math.prod(self.shape)

    def to_array(self) -> np.ndarray:
        """Return the values, bfloat16 as uint16 bits; the array may be read-only.

        Raises
        ------
        UnsupportedFeatureError
            For strings, complex numbers and types of fewer than 8 bits.
        CorruptError
            If the values do not fill the shape.
        """
        element = element_type(self.element_number)
        if element is None or element.dtype is None:
            raise UnsupportedFeatureError(
                f"inline tensor {self.name!r} has ONNX data type {self.element_number}; it is not supported"
            )
        if len(self.shape) > MAX_RANK:
            raise UnsupportedFeatureError(f"inline tensor {self.name!r} has rank {len(self.shape)}")
        flat = self._elements(element.dtype)
        if flat.size != self.n_elements:
            raise CorruptError(
                f"inline tensor {self.name!r} of shape {self.shape} holds {flat.size} elements",
                section=_SECTION,
            )
        return flat.reshape(self.shape)

    def _elements(self, dtype: DType) -> np.ndarray:
        if self.raw is not None:
            return self._raw_elements(self.raw, dtype)
        if dtype in _FLOAT_FIELDS:
            field = _FLOAT_FIELDS[dtype]
            return self.floats.get(field, np.zeros(0, dtype=dtype.storage_dtype))
        numbers = self.integers.get(_WIDE_INTEGER.get(dtype, "int32_data"), [])
        return self._integer_elements(numbers, dtype)

    def _raw_elements(self, raw: bytes, dtype: DType) -> np.ndarray:
        if len(raw) % dtype.itemsize:
            raise CorruptError(
                f"inline tensor {self.name!r} holds a fraction of an element", section=_SECTION
            )
        if dtype is DType.BOOL:
            return np.not_equal(np.frombuffer(raw, dtype=np.uint8), 0)
        return np.frombuffer(raw, dtype=dtype.storage_dtype)

    def _integer_elements(self, numbers: list[int], dtype: DType) -> np.ndarray:
        if dtype is DType.BOOL:
            return np.array([number != 0 for number in numbers], dtype=np.bool_)
        bits = dtype is DType.FLOAT16 or dtype is DType.BFLOAT16
        stored = np.dtype(np.uint16) if bits else dtype.storage_dtype
        if dtype is DType.UINT64:
            numbers = [number % (1 << 64) for number in numbers]
        info = np.iinfo(stored.name)
        if any(not info.min <= number <= info.max for number in numbers):
            raise CorruptError(
                f"inline tensor {self.name!r} has a number beyond {dtype.label}", section=_SECTION
            )
        array: np.ndarray = np.array(numbers, dtype=stored)
        return array.view(dtype.storage_dtype)
