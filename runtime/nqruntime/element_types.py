"""Element types by their ONNX number, with the names that NumPy and ONNX Runtime use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nqformat.dtypes import DType, bfloat16_to_float32, float32_to_bfloat16

STRING = 8
BFLOAT16 = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ElementType:
    """One value of ONNX's TensorProto.DataType.

    Attributes
    ----------
    number : int
    label : str
        As in ONNX Runtime's ``tensor(label)``.
    dtype : DType or None
        Element type of a stored tensor; None if .nqz files hold no such tensors.
    """

    number: int
    label: str
    dtype: DType | None

    @property
    def numpy_name(self) -> str:
        """Name that ``ndarray.dtype.name`` gives to arrays of this type."""
        return "str" if self.dtype is None else self.dtype.label


_TYPES = (
    (1, "float", DType.FLOAT32),
    (2, "uint8", DType.UINT8),
    (3, "int8", DType.INT8),
    (4, "uint16", DType.UINT16),
    (5, "int16", DType.INT16),
    (6, "int32", DType.INT32),
    (7, "int64", DType.INT64),
    (STRING, "string", None),
    (9, "bool", DType.BOOL),
    (10, "float16", DType.FLOAT16),
    (11, "double", DType.FLOAT64),
    (12, "uint32", DType.UINT32),
    (13, "uint64", DType.UINT64),
    (BFLOAT16, "bfloat16", DType.BFLOAT16),
)
_BY_NUMBER = {n: ElementType(number=n, label=label, dtype=dtype) for n, label, dtype in _TYPES}
_BY_DTYPE = {element.dtype: element for element in _BY_NUMBER.values() if element.dtype is not None}


def element_type(number: int) -> ElementType | None:
    """Return the element type of an ONNX number, or None if this package does not know it."""
    return _BY_NUMBER.get(number)


def onnx_number(dtype: DType) -> int:
    """Return the ONNX number of a stored tensor's element type."""
    return _BY_DTYPE[dtype].number


def matches(array: np.ndarray, element: ElementType) -> bool:
    """Whether an array holds elements of that type, in either byte order."""
    if element.number == STRING:
        return array.dtype.kind in "OUS"
    return array.dtype.name == element.numpy_name


HALVES = (DType.FLOAT16, DType.BFLOAT16)
"""Element types of 16 bits: the native engine computes with float32 in their place."""


def widened(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Return half-precision numbers as float32; bfloat16 may be given as bits (uint16)."""
    if values.dtype == np.uint16 and dtype is DType.BFLOAT16:
        return bfloat16_to_float32(values)
    return values.astype(np.float32)


def rounded_to_half(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Return floats rounded to half precision, as float32."""
    if dtype is DType.BFLOAT16:
        return bfloat16_to_float32(float32_to_bfloat16(values.astype(np.float32, copy=False)))
    with np.errstate(over="ignore"):
        return values.astype(np.float16).astype(np.float32)
