"""Declaring the tensors of a file to ONNX Runtime by appending bytes to the stored graph.

Parsers merge concatenated protobuf messages, so that a second ``graph`` field holding nothing but
initializers adds them to the first: no other byte of the graph changes.
"""

from __future__ import annotations

import numpy as np

from .wire import bytes_field, varint_field

MIN_IR_VERSION = 4

_MODEL_IR_VERSION, _MODEL_GRAPH = 1, 7
_GRAPH_INITIALIZER = 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA, _EXTERNAL_DATA, _DATA_LOCATION = 1, 2, 8, 9, 13, 14
_EXTERNAL = 1


def declare_ir_version() -> bytes:
    """Raise the IR version to the first one whose initializers need not be graph inputs.

    Of a scalar field that stands twice, the last value counts.
    """
    return varint_field(_MODEL_IR_VERSION, MIN_IR_VERSION)


def declare_inline(name: str, data_type: int, array: np.ndarray) -> bytes:
    """Declare an initializer with its values.

    Parameters
    ----------
    data_type : int
        ONNX number of the element type.
    array : ndarray
        Little-endian, bfloat16 as uint16 bits.
    """
    values = bytes_field(_RAW_DATA, array.tobytes())
    return _declare(_tensor_head(name, data_type, array.shape) + values)


def declare_external(name: str, data_type: int, array: np.ndarray, location: str, offset_bytes: int) -> bytes:
    """Declare an initializer whose values lie beside the graph, in a file of that name or in memory."""
    entries = (("location", location), ("offset", str(offset_bytes)), ("length", str(array.nbytes)))
    external = b"".join(
        bytes_field(_EXTERNAL_DATA, bytes_field(1, key.encode()) + bytes_field(2, text.encode()))
        for key, text in entries
    )
    return _declare(
        _tensor_head(name, data_type, array.shape) + external + varint_field(_DATA_LOCATION, _EXTERNAL)
    )


def _tensor_head(name: str, data_type: int, shape: tuple[int, ...]) -> bytes:
    dims = b"".join(varint_field(_DIMS, size) for size in shape)
    return dims + varint_field(_DATA_TYPE, data_type) + bytes_field(_NAME, name.encode())


def _declare(tensor: bytes) -> bytes:
    return bytes_field(_MODEL_GRAPH, bytes_field(_GRAPH_INITIALIZER, tensor))
