"""Weight matrices that multiply without being decoded as a whole.

Every matrix has shape (n_rows, n_columns), rows being outputs, and computes ``matrix @ right``.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Protocol

import numpy as np

from nqformat.kernels.objects import KernelLibrary

from .constants import Constant
from .numpy_products import (
    expand_symbols,
    multiply_columns,
    multiply_palette,
    multiply_rows,
)
from .packing.areas import address, aligned
from .packing.choice import row_candidates
from .packing.rows import BUFFER_FLOATS, PackedRows
from .symbols import MatrixWeights, Symbols, read_matrix, symbols_of, with_zeros_stored


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


class PaletteMatrix:
    """A matrix with a symbol for each element, decoded a tile at a time."""

    def __init__(self, symbols: np.ndarray, codebook: np.ndarray) -> None:
        self._symbols = np.ascontiguousarray(symbols)
        self._codebook = codebook
        self.weight_bytes = self._symbols.nbytes + codebook.nbytes
        self.label = f"palette of {codebook.size}, {_size_label(symbols.shape)}, numpy"

    def multiply(self, right: np.ndarray) -> np.ndarray:
        """Return the product with `right`."""
        _check_inputs(right, self._symbols.shape[1])
        return multiply_palette(self._symbols, self._codebook, right.astype(np.float32, copy=False))


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
        arrays = (self._starts, self._minors, self._symbols, self._codebook)
        self.weight_bytes = sum(array.nbytes for array in arrays)
        density = symbols.symbols.size / max(1, math.prod(shape))
        self.label = (
            f"sparse by {order.value}, {density:.1%} of {_size_label(shape)}, "
            f"palette of {self._codebook.size}, numpy"
        )

    def multiply(self, right: np.ndarray) -> np.ndarray:
        """Return the product with `right`."""
        _check_inputs(right, self._n_columns)
        right = right.astype(np.float32, copy=False)
        return self._multiply(self._starts, self._minors, self._symbols, self._codebook, right, self._n_rows)


class KernelMatrix:
    """A matrix in the order of a compute kernel."""

    def __init__(self, packed: PackedRows, library: KernelLibrary) -> None:
        self._packed = packed
        self._library = library
        self._bias = packed.bias(None)
        self.weight_bytes = packed.weight_bytes
        self.label = packed.label

    def multiply(self, right: np.ndarray) -> np.ndarray:
        """Return the product with `right`."""
        packed = self._packed
        _check_inputs(right, packed.n_columns)
        vectors = np.ascontiguousarray(right.T, dtype=np.float32)
        out = aligned(len(vectors) * packed.out_size, np.float32)
        buffer = aligned(BUFFER_FLOATS, np.float32)
        block = packed.block(
            source=address(vectors),
            source_pitch=packed.n_columns,
            n_sources=len(vectors),
            out=address(out),
            out_pitch=packed.out_size,
            bias=address(self._bias),
            low=-math.inf,
            high=math.inf,
            buffer=address(buffer),
        )
        status = self._library.run(packed.kernel, address(block))
        if status != 0:
            raise AssertionError(f"a kernel refused its block with status {status}")
        return out.reshape(len(vectors), packed.out_size)[:, : packed.n_rows].T


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


def _check_inputs(right: np.ndarray, n_columns: int) -> None:
    if right.shape[0] != n_columns:
        raise ValueError(f"weights of {n_columns} inputs do not take {right.shape[0]}")


def _size_label(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def build_matrix(
    constant: Constant, shape: tuple[int, int], order: StorageOrder, library: KernelLibrary | None
) -> Matrix:
    """Choose a matrix for a constant, reshaped to `shape`, by how it is stored and how sparse it is.

    Parameters
    ----------
    order : StorageOrder
        For a sparse matrix: columns suit single vectors with zeros, rows suit many columns.
    library : KernelLibrary or None
        None takes NumPy.
    """
    weights = read_matrix(constant, shape)
    found: Matrix | None = None
    if weights.symbols is not None:
        found = _numpy_matrix(weights, order) if library is None else _kernel_matrix(weights, order, library)
    if found is None:
        return DenseMatrix(weights.decoded())
    if weights.factors is None or isinstance(found, KernelMatrix):
        return found
    return ScaledMatrix(found, weights.factors)


def _kernel_matrix(weights: MatrixWeights, order: StorageOrder, library: KernelLibrary) -> Matrix | None:
    candidates = row_candidates(weights, low_memory=order is StorageOrder.ROWS)
    names = ("slices", "palette") if order is StorageOrder.COLUMNS else ("palette",)
    for name in names:
        packed = candidates[name]() if name in candidates else None
        if packed is not None:
            return KernelMatrix(packed, library)
    return None


def _numpy_matrix(weights: MatrixWeights, order: StorageOrder) -> Matrix | None:
    """Return a matrix that stays compressed; None if there is none for such a tensor."""
    nonzeros = weights.nonzeros()
    if nonzeros is not None:
        rows, columns, symbols = nonzeros
        return SparseMatrix(symbols, rows=rows, columns=columns, shape=weights.shape, order=order)
    every = weights.every_symbol()
    return None if every is None else PaletteMatrix(*every)


class CompactArray:
    """A constant of any shape that stays quantized and is decoded piece by piece."""

    def __init__(self, constant: Constant) -> None:
        packed = constant.packed()
        symbols = None if packed is None else symbols_of(packed[0])
        full = None if symbols is None else with_zeros_stored(symbols)
        if packed is None or full is None:
            self._stored, self._codebook = constant.array(), None
            self.label = "dense, numpy"
        else:
            permuted = full.symbols.reshape(full.shape).transpose(packed[1])
            self._stored, self._codebook = np.ascontiguousarray(permuted), full.codebook
            self.label = f"palette of {full.codebook.size}, numpy"
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
        return expand_symbols(stored, self._codebook)

    @property
    def stored(self) -> np.ndarray:
        """Symbols, or plain values, in the shape of the constant."""
        return self._stored
