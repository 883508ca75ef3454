"""Element types of stored tensors (spec 3.1)."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from .errors import UnsupportedFeatureError
from .optional_packages import require_package


class DType(IntEnum):
    """Number of an element type in the file (spec 3.1); values are never renumbered or reused."""

    BOOL = 1
    UINT8 = 2
    INT8 = 3
    UINT16 = 4
    INT16 = 5
    UINT32 = 6
    INT32 = 7
    UINT64 = 8
    INT64 = 9
    FLOAT16 = 10
    BFLOAT16 = 11
    FLOAT32 = 12
    FLOAT64 = 13

    @classmethod
    def from_number(cls, number: int) -> DType:
        """Return the member for `number`; raise UnsupportedFeatureError for an unknown one."""
        try:
            return cls(number)
        except ValueError:
            raise UnsupportedFeatureError(f"dtype number {number} is unknown to this reader") from None

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return self.storage_dtype.itemsize

    @property
    def is_float(self) -> bool:
        """Whether elements are floating point."""
        return self >= DType.FLOAT16

    @property
    def storage_dtype(self) -> np.dtype[np.generic]:
        """Little-endian NumPy dtype of the stored bits; bfloat16 is held as its uint16 bits."""
        return np.dtype(_STORAGE[self])

    @property
    def label(self) -> str:
        """Name as NumPy writes it, such as ``float32`` or ``bfloat16``."""
        return self.name.lower()


_STORAGE: dict[DType, str] = {
    DType.BOOL: "|b1",
    DType.UINT8: "|u1",
    DType.INT8: "|i1",
    DType.UINT16: "<u2",
    DType.INT16: "<i2",
    DType.UINT32: "<u4",
    DType.INT32: "<i4",
    DType.UINT64: "<u8",
    DType.INT64: "<i8",
    DType.FLOAT16: "<f2",
    DType.BFLOAT16: "<u2",
    DType.FLOAT32: "<f4",
    DType.FLOAT64: "<f8",
}


def dtype_of(array: np.ndarray) -> DType:
    """Return the element type of a NumPy array (an ml_dtypes bfloat16 array counts as BFLOAT16).

    Raises
    ------
    TypeError
        If the array's dtype cannot be stored.
    """
    if array.dtype.name == "bfloat16":
        return DType.BFLOAT16
    wanted = array.dtype.newbyteorder("<")
    for number, text in _STORAGE.items():
        if number is not DType.BFLOAT16 and wanted == np.dtype(text):
            return number
    raise TypeError(f"dtype {array.dtype} cannot be stored in a .nqz file")


def storage_bits(array: np.ndarray) -> np.ndarray:
    """Return `array` C-contiguous in its little-endian storage dtype (bfloat16 as uint16 bits)."""
    dtype = dtype_of(array)
    if dtype is DType.BFLOAT16:
        return np.ascontiguousarray(array).view(np.uint16).astype("<u2", copy=False).reshape(array.shape)
    return np.asarray(array, dtype=dtype.storage_dtype, order="C")


def bfloat16_to_float32(bits: np.ndarray) -> np.ndarray:
    """Widen uint16 bfloat16 bits to float32, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def float32_to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Round float32 to the nearest bfloat16, ties to even; returns uint16 bits. NaN stays NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint64(16)
    quiet_nan = (bits >> np.uint32(16)) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet_nan, rounded).astype(np.uint16)


def bfloat16_array(bits: np.ndarray, form: str) -> np.ndarray:
    """Hand out bfloat16 bits as the caller wants them.

    Parameters
    ----------
    bits : ndarray of uint16
    form : {"ml_dtypes", "uint16", "float32"}

    Raises
    ------
    MissingDependencyError
        If `form` is "ml_dtypes" and that package is missing.
    """
    if form == "uint16":
        return bits
    if form == "float32":
        return bfloat16_to_float32(bits)
    if form != "ml_dtypes":
        raise ValueError(f"bfloat16 must be 'ml_dtypes', 'uint16' or 'float32', not {form!r}")
    widened: np.ndarray = bits.astype(np.uint16, copy=False).view(require_package("ml_dtypes").bfloat16)
    return widened
