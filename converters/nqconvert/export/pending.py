"""Initializers that are going to be written, with their bytes produced on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nqconvert.graphs.onnx_tensor import ONNX_OF_DTYPE
from nqformat import TensorInfo
from nqformat.dtypes import DType
from nqformat.errors import UnsupportedFeatureError

from .restore import TensorFile


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingInitializer:
    """One initializer of the exported model.

    Attributes
    ----------
    name : str
    data_type : int
        TensorProto.DataType number.
    shape : tuple of int
    n_bytes : int
    read : callable
        Returns the bytes for ``raw_data``.
    integers : tuple of int
        Short vectors of int64: what goes into ``int64_data`` instead, where small numbers take a byte.
    """

    name: str
    data_type: int
    shape: tuple[int, ...]
    n_bytes: int
    read: Callable[[], bytes]
    integers: tuple[int, ...] = ()


def dense_initializer(file: TensorFile, info: TensorInfo) -> PendingInitializer:
    """Return the decoded tensor as an initializer, decoded when it is written."""
    dtype = known_dtype(info)
    return PendingInitializer(
        name=info.name,
        data_type=ONNX_OF_DTYPE[dtype],
        shape=info.shape,
        n_bytes=info.plain_bytes,
        read=lambda: np.ascontiguousarray(file.get_tensor(info.name)).tobytes(),
    )


def array_initializer(name: str, array: np.ndarray, dtype: DType) -> PendingInitializer:
    """Return an array that holds the storage bits of `dtype` as an initializer."""
    return PendingInitializer(
        name=name,
        data_type=ONNX_OF_DTYPE[dtype],
        shape=array.shape,
        n_bytes=array.nbytes,
        read=lambda: np.ascontiguousarray(array).tobytes(),
    )


def integers_initializer(name: str, values: tuple[int, ...]) -> PendingInitializer:
    """Return a short vector of int64 as an initializer."""
    array = np.array(values, dtype="<i8")
    return PendingInitializer(
        name=name,
        data_type=ONNX_OF_DTYPE[DType.INT64],
        shape=array.shape,
        n_bytes=array.nbytes,
        read=array.tobytes,
        integers=values,
    )


def known_dtype(info: TensorInfo) -> DType:
    """Return the element type of a tensor; raise UnsupportedFeatureError if this reader cannot read it."""
    if info.dtype is None or info.unsupported:
        raise UnsupportedFeatureError(f"tensor {info.name!r}: {info.unsupported}")
    return info.dtype
