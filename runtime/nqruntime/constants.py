"""Constant operands of a graph: tensors of the file or of the graph, decoded only where they must be."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from nqformat import DType, Layout, NqzFile, PackedTensor
from nqformat.errors import UnsupportedFeatureError
from nqformat.tensor_records import ViewFields

from .element_types import HALVES, element_type, widened
from .inline_tensor import InlineTensor
from .tensor_file import TensorFile


class Constant(Protocol):
    """A value that is known before the graph runs."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        ...

    def array(self) -> np.ndarray:
        """Return the value as an array that nobody may change."""
        ...

    def packed(self) -> tuple[PackedTensor, tuple[int, ...]] | None:
        """Return the value still quantized, with the permutation of axes that gives it; None if it is not.

        The permutation is as in ``numpy.transpose``, applied to the packed tensor's elements.
        """
        ...

    def transposed(self, permutation: tuple[int, ...]) -> Constant:
        """Return the value with its axes permuted."""
        ...


class ArrayConstant:
    """A constant that is an array from the start."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return self._array.shape

    def array(self) -> np.ndarray:
        """Return the array."""
        return self._array

    def packed(self) -> None:
        """Return None: nothing is quantized."""
        return

    def transposed(self, permutation: tuple[int, ...]) -> Constant:
        """Return the transposed array, copied."""
        return ArrayConstant(np.ascontiguousarray(self._array.transpose(permutation)))


class StoredConstant:
    """A tensor of the file, decoded once at most; half precision becomes float32."""

    def __init__(self, file: TensorFile, name: str, permutation: tuple[int, ...] | None = None) -> None:
        info = file.info(name)
        if info.unsupported:
            raise UnsupportedFeatureError(f"tensor {name!r}: {info.unsupported}")
        self._file = file
        self._name = name
        self._dtype = info.dtype
        self._permutation = permutation or tuple(range(len(info.shape)))
        self._stored_shape = info.shape
        self._array: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape after the permutation."""
        return tuple(self._stored_shape[axis] for axis in self._permutation)

    def array(self) -> np.ndarray:
        """Decode the tensor."""
        if self._array is None:
            decoded = self._file.get_tensor(self._name)
            if self._dtype in HALVES:
                decoded = widened(decoded, self._dtype)
            self._array = np.ascontiguousarray(decoded.transpose(self._permutation))
        return self._array

    def packed(self) -> tuple[PackedTensor, tuple[int, ...]] | None:
        """Return the packed tensor, if it holds floats of 32 or 16 bits."""
        if self._dtype is not DType.FLOAT32 and self._dtype not in HALVES:
            return None
        name, permutation = _view_source(self._file, self._name) or (self._name, None)
        packed = self._file.get_packed(name)
        if not isinstance(packed, PackedTensor) or (packed.scales is not None and self._dtype in HALVES):
            return None  # a scaled half is rounded once more
        if permutation is None:
            return packed, self._permutation
        return packed, tuple(permutation[axis] for axis in self._permutation)

    def transposed(self, permutation: tuple[int, ...]) -> Constant:
        """Return the tensor with its axes permuted."""
        return StoredConstant(self._file, self._name, tuple(self._permutation[axis] for axis in permutation))


def _view_source(file: TensorFile, name: str) -> tuple[str, tuple[int, ...]] | None:
    """Return the stored tensor that a view merely permutes; None for every other tensor."""
    info = file.info(name)
    if info.layout is not Layout.VIEW or len(info.sources) != 1 or not isinstance(file, NqzFile):
        return None
    fields = next(record.fields for record in file.directory.tensors if record.name == name)
    assert isinstance(fields, ViewFields)
    source = file.info(info.sources[0])
    part = fields.parts[0]
    permuted = tuple(source.shape[axis] for axis in fields.permutation)
    if part.start != 0 or not source.shape or part.n_rows != source.shape[0] or permuted != info.shape:
        return None
    return source.name, fields.permutation


def inline_constant(tensor: InlineTensor) -> Constant:
    """Return the value of a tensor that stands in the graph, half precision as float32."""
    element, array = element_type(tensor.element_number), tensor.to_array()
    if element is not None and element.dtype is not None and element.dtype in HALVES:
        array = widened(array, element.dtype)
    return ArrayConstant(array)
