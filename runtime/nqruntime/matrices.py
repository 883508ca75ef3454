"""Weight matrices that multiply without being decoded as a whole.

Every matrix has shape (n_rows, n_columns), rows being outputs, and computes ``matrix @ right``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import Protocol

import numpy as np

from nqformat import DType, PackedTensor
from nqformat.tensor import affine_values, cast_values

from .constants import Constant
from .kernels import Workers, expand_symbols, multiply_columns, multiply_palette, multiply_rows

_SPARSE_BELOW_DENSITY = 0.3
_MAX_CODEBOOK_ENTRIES = 1 << 16


class StorageOrder(Enum):
    """Along what a sparse matrix is stored."""

    ROWS = "rows"
    COLUMNS = "columns"


class Matrix(Protocol):
    """A constant matrix."""

    label: str
    weight_bytes: int

    def multiply(self, right: np.ndarray) -> np.ndarray:
        """Return the product with `right` of shape (n_columns, n)."""
        ...


class DenseMatrix:
    """A matrix of plain numbers."""

    def __init__(self, values: np.ndarray) -> None:
        self._values = values
        self.weight_bytes = values.nbytes
        self.label = f"dense {_size_label(values.shape)}, numpy"

    def multiply(self, right: np.ndarray) -> np.ndarray:
        """Return the product with `right`."""
        product: np.ndarray = self._values @ right
        return product


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbols:
    """A quantized tensor as symbols of one codebook, in the smallest dtypes that hold them.

    Attributes
    ----------
    shape : tuple of int
    symbols : ndarray of uint8 or uint16, shape (n_stored,)
    positions : ndarray of int64, shape (n_stored,), or None
        Ascending C-order positions of the stored elements, all others being zero.
    codebook : ndarray of float32
    """

    shape: tuple[int, ...]
    symbols: np.ndarray
    positions: np.ndarray | None
    codebook: np.ndarray

    @property
    def density(self) -> float:
        """Stored elements over all elements."""
        return self.symbols.size / max(1, math.prod(self.shape))


def symbols_of(packed: PackedTensor) -> Symbols | None:
    """Return a packed float32 tensor as symbols; None if it has scales or over 65,536 entries."""
    if packed.dtype is not DType.FLOAT32 or packed.scales is not None:
        return None
    codebook, numbers = packed.codebook, packed.symbols
    if codebook is None:
        low, high = (int(numbers.min()), int(numbers.max())) if numbers.size else (0, 0)
        if high - low >= _MAX_CODEBOOK_ENTRIES:
            return None
        k = np.arange(low, high + 1, dtype=np.int32)
        codebook, numbers = affine_values(k, packed.step, packed.offset), numbers - np.int32(low)
    if codebook.size > _MAX_CODEBOOK_ENTRIES:
        return None
    symbols = Symbols(
        shape=packed.shape,
        symbols=numbers.astype(_symbol_dtype(codebook.size), copy=False),
        positions=packed.positions,
        codebook=cast_values(codebook, DType.FLOAT32),
    )
    return _without_many_zeros(symbols)


def _without_many_zeros(symbols: Symbols) -> Symbols:
    """Leave out stored zeros where these are most elements, whatever layout the file chose."""
    zeros = np.flatnonzero(symbols.codebook == 0)
    if symbols.positions is not None or zeros.size != 1 or symbols.symbols.size == 0:
        return symbols
    flat = symbols.symbols.reshape(-1)
    positions = np.flatnonzero(flat != zeros[0])
    if positions.size >= _SPARSE_BELOW_DENSITY * flat.size:
        return symbols
    return Symbols(
        shape=symbols.shape, symbols=flat[positions], positions=positions, codebook=symbols.codebook
    )


def _symbol_dtype(n_entries: int) -> type[np.uint8] | type[np.uint16]:
    return np.uint8 if n_entries <= 1 << 8 else np.uint16


def with_zeros_stored(symbols: Symbols) -> Symbols | None:
    """Give implied zeros a symbol of their own; None if the codebook has no room for it."""
    if symbols.positions is None:
        return symbols
    zeros = np.flatnonzero(symbols.codebook == 0)
    codebook = symbols.codebook if zeros.size else np.append(symbols.codebook, np.float32(0))
    if codebook.size > _MAX_CODEBOOK_ENTRIES:
        return None
    zero = int(zeros[0]) if zeros.size else codebook.size - 1
    every = np.full(math.prod(symbols.shape), zero, dtype=_symbol_dtype(codebook.size))
    every[symbols.positions] = symbols.symbols
    return Symbols(shape=symbols.shape, symbols=every, positions=None, codebook=codebook)


class PaletteMatrix:
    """A matrix with a symbol for each element, decoded a tile at a time."""

    def __init__(self, symbols: np.ndarray, codebook: np.ndarray, *, numba: bool) -> None:
        self._symbols = np.ascontiguousarray(symbols)
        self._codebook = codebook
        self._numba = numba
        self.weight_bytes = self._symbols.nbytes + codebook.nbytes
        path = "numba" if numba else "numpy"
        self.label = f"palette of {codebook.size}, {_size_label(symbols.shape)}, {path}"

    def multiply(self, right: np.ndarray) -> np.ndarray:
        """Return the product with `right`."""
        if right.shape[0] != self._symbols.shape[1]:
            raise ValueError(f"weights of {self._symbols.shape[1]} inputs do not take {right.shape[0]}")
        right = right.astype(np.float32, copy=False)
        return multiply_palette(self._symbols, self._codebook, right, numba=self._numba)


class SparseMatrix:
    """A matrix of its nonzero elements: a symbol and a row or column number for each."""

    def __init__(
        self,
        symbols: Symbols,
        *,
        rows: np.ndarray,
        columns: np.ndarray,
        shape: tuple[int, int],
        order: StorageOrder,
        workers: Workers | None,
    ) -> None:
        majors, minors = (rows, columns) if order is StorageOrder.ROWS else (columns, rows)
        n_majors, n_minors = shape if order is StorageOrder.ROWS else shape[::-1]
        sequence = np.lexsort((minors, majors))
        counts = np.bincount(majors, minlength=n_majors)
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self._minors = minors[sequence].astype(np.uint16 if n_minors <= 1 << 16 else np.uint32)
        self._symbols = np.ascontiguousarray(symbols.symbols[sequence])
        self._codebook = np.ascontiguousarray(symbols.codebook)
        self._n_rows, self._n_columns = shape
        self._multiply = multiply_rows if order is StorageOrder.ROWS else multiply_columns
        self._workers = workers
        arrays = (self._starts, self._minors, self._symbols, self._codebook)
        self.weight_bytes = sum(array.nbytes for array in arrays)
        density = symbols.symbols.size / max(1, math.prod(shape))
        path = "numpy" if workers is None else "numba"
        self.label = (
            f"sparse by {order.value}, {density:.1%} of {_size_label(shape)}, "
            f"palette of {self._codebook.size}, {path}"
        )

    def multiply(self, right: np.ndarray) -> np.ndarray:
        """Return the product with `right`."""
        if right.shape[0] != self._n_columns:
            raise ValueError(f"weights of {self._n_columns} inputs do not take {right.shape[0]}")
        return self._multiply(
            self._starts,
            self._minors,
            self._symbols,
            self._codebook,
            right.astype(np.float32, copy=False),
            self._n_rows,
            self._workers,
        )


class ScaledMatrix:
    """A matrix whose rows have a factor each, multiplied after the product."""

    def __init__(self, matrix: Matrix, factors: np.ndarray) -> None:
        self._matrix = matrix
        self._factors = factors[:, None]
        self.weight_bytes = matrix.weight_bytes + factors.nbytes
        self.label = f"{matrix.label}, scaled rows"

    def multiply(self, right: np.ndarray) -> np.ndarray:
        """Return the product with `right`."""
        product = self._matrix.multiply(right)
        product *= self._factors
        return product


def _row_factors(
    packed: PackedTensor, permutation: tuple[int, ...], shape: tuple[int, int]
) -> np.ndarray | None:
    """Return the scales of a tensor if each row of its matrix has one, else None."""
    scales, stored = packed.scales, packed.shape
    if scales is None:
        return None
    for axis, n_rows in enumerate(stored):
        span = math.prod(stored[axis:][1:])
        if scales.span == span and scales.values.size == n_rows == shape[0] and permutation[0] == axis:
            return scales.values
    return None


def _size_label(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def build_matrix(
    constant: Constant, shape: tuple[int, int], order: StorageOrder, workers: Workers | None
) -> Matrix:
    """Choose a matrix for a constant, reshaped to `shape`, by how it is stored and how sparse it is.

    Parameters
    ----------
    order : StorageOrder
        For a sparse matrix: columns suit single vectors with zeros, rows suit many columns.
    workers : Workers or None
        None takes the NumPy kernels.
    """
    packed = constant.packed() if math.prod(shape) else None
    found = None if packed is None else _compressed_matrix(*packed, shape, order, workers)
    return found or DenseMatrix(constant.array().reshape(shape))


def _compressed_matrix(
    packed: PackedTensor,
    permutation: tuple[int, ...],
    shape: tuple[int, int],
    order: StorageOrder,
    workers: Workers | None,
) -> Matrix | None:
    """Return a matrix that stays compressed; None if there is none for such a tensor."""
    if packed.scales is not None:
        factors = _row_factors(packed, permutation, shape)
        plain = replace(packed, scales=None)
        matrix = None if factors is None else _compressed_matrix(plain, permutation, shape, order, workers)
        return None if matrix is None or factors is None else ScaledMatrix(matrix, factors)
    symbols = symbols_of(packed)
    if symbols is None:
        return None
    if symbols.positions is not None and symbols.density < _SPARSE_BELOW_DENSITY:
        rows, columns = _coordinates(symbols.positions, symbols.shape, permutation, shape)
        return SparseMatrix(symbols, rows=rows, columns=columns, shape=shape, order=order, workers=workers)
    full = with_zeros_stored(symbols)
    if full is None:
        return None
    every = full.symbols.reshape(symbols.shape).transpose(permutation).reshape(shape)
    return PaletteMatrix(every, full.codebook, numba=workers is not None)


def _coordinates(
    positions: np.ndarray, stored_shape: tuple[int, ...], permutation: tuple[int, ...], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of elements after permuting axes and reshaping to `shape`."""
    if permutation != tuple(range(len(stored_shape))):
        stored = np.unravel_index(positions, stored_shape)
        permuted_shape = tuple(stored_shape[axis] for axis in permutation)
        positions = np.ravel_multi_index([stored[axis] for axis in permutation], permuted_shape)
    return positions // shape[1], positions % shape[1]


class CompactArray:
    """A constant of any shape that stays quantized and is decoded piece by piece."""

    def __init__(self, constant: Constant, workers: Workers | None) -> None:
        packed = constant.packed()
        symbols = None if packed is None else symbols_of(packed[0])
        full = None if symbols is None else with_zeros_stored(symbols)
        self._numba = workers is not None
        if packed is None or full is None:
            self._stored, self._codebook = constant.array(), None
            self.label = "dense, numpy"
        else:
            permuted = full.symbols.reshape(full.shape).transpose(packed[1])
            self._stored, self._codebook = np.ascontiguousarray(permuted), full.codebook
            self.label = f"palette of {full.codebook.size}, {'numba' if self._numba else 'numpy'}"
        self.weight_bytes = self._stored.nbytes + (0 if self._codebook is None else self._codebook.nbytes)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the constant."""
        return self._stored.shape

    def decoded(self, piece: np.ndarray | None = None) -> np.ndarray:
        """Decode all of it, or a piece that was taken from `stored`."""
        stored = self._stored if piece is None else piece
        if self._codebook is None:
            return stored
        return expand_symbols(np.ascontiguousarray(stored), self._codebook, numba=self._numba)

    @property
    def stored(self) -> np.ndarray:
        """Symbols, or plain values, in the shape of the constant."""
        return self._stored
