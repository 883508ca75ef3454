"""ONNX TensorProto to NumPy array and back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from nqformat.dtypes import DType, dtype_of, storage_bits
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

DTYPE_OF_ONNX: dict[int, DType] = {
    1: DType.FLOAT32,
    2: DType.UINT8,
    3: DType.INT8,
    4: DType.UINT16,
    5: DType.INT16,
    6: DType.INT32,
    7: DType.INT64,
    9: DType.BOOL,
    10: DType.FLOAT16,
    11: DType.FLOAT64,
    12: DType.UINT32,
    13: DType.UINT64,
    16: DType.BFLOAT16,
}
"""TensorProto.DataType numbers that a .nqz file can store."""

ONNX_OF_DTYPE: dict[DType, int] = {dtype: number for number, dtype in DTYPE_OF_ONNX.items()}


def stored_dtype(proto: Any) -> DType | None:
    """Return the element type of a TensorProto, or None if a .nqz file cannot store it."""
    return DTYPE_OF_ONNX.get(proto.data_type)


def n_elements(proto: Any) -> int:
    """Return the number of elements of a TensorProto."""
    return math.prod(proto.dims)


def array_of(proto: Any) -> np.ndarray:
    """Return the elements of a TensorProto.

    Raises
    ------
    ConversionError
        If the stored bytes do not fit the declared shape and type.
    """
    numpy_helper = require_package("onnx").numpy_helper
    try:
        array: np.ndarray = numpy_helper.to_array(proto)
    except (ValueError, TypeError, KeyError) as error:
        raise ConversionError(f"initializer {proto.name!r} is malformed: {error}") from None
    if array.shape != tuple(proto.dims):
        raise ConversionError(f"initializer {proto.name!r} holds {array.shape}, declares {tuple(proto.dims)}")
    return array


def array_of_bytes(content: bytes, proto: Any) -> np.ndarray:
    """Return little-endian elements of a TensorProto's shape and type, which share memory with `content`."""
    helper = require_package("onnx").helper
    bits = np.frombuffer(content, dtype=DTYPE_OF_ONNX[proto.data_type].storage_dtype)
    native = bits.astype(bits.dtype.newbyteorder("="), copy=False)
    array: np.ndarray = native.view(helper.tensor_dtype_to_np_dtype(proto.data_type))
    return array.reshape(tuple(proto.dims))


def proto_of(name: str, array: np.ndarray) -> Any:
    """Return a TensorProto that holds `array` in ``raw_data``."""
    proto = require_package("onnx").TensorProto()
    proto.name = name
    proto.data_type = ONNX_OF_DTYPE[dtype_of(array)]
    proto.dims.extend(array.shape)
    proto.raw_data = storage_bits(array).tobytes()
    return proto
