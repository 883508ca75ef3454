"""Quantized constants as symbols of one codebook, on their way from the file to a kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from nqformat import DType, PackedTensor
from nqformat.errors import CorruptError
from nqformat.tensor import affine_values, cast_values

from .constants import Constant
from .element_types import HALVES, widened

SPARSE_BELOW_DENSITY = 0.3
"""Density from which zeros are symbols like others."""

_MAX_CODEBOOK_ENTRIES = 1 << 16


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
    """Return a packed tensor of floats as symbols; None if it has scales or over 65,536 entries.

    Entries of half precision are rounded to it, as decoding does, and become float32.
    """
    is_half = packed.dtype in HALVES
    if not (is_half or packed.dtype is DType.FLOAT32) or packed.scales is not None:
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
    _check_bounds(packed, numbers, codebook.size)
    values = cast_values(codebook, packed.dtype)
    symbols = Symbols(
        shape=packed.shape,
        symbols=numbers.astype(_symbol_dtype(codebook.size), copy=False),
        positions=packed.positions,
        codebook=widened(values, packed.dtype) if is_half else values,
    )
    return _without_many_zeros(symbols)


def _check_bounds(packed: PackedTensor, numbers: np.ndarray, n_entries: int) -> None:
    """Make sure of what kernels rely on, whoever made the tensor: they look at no bound."""
    places, size = packed.positions, math.prod(packed.shape)
    n_stored = size if places is None else places.size
    inside = numbers.size == n_stored and (numbers.size == 0 or int(numbers.max()) < n_entries)
    if places is not None and places.size:
        inside = inside and int(places.min()) >= 0 and int(places.max()) < size
    if not inside:
        raise CorruptError(
            f"tensor {packed.name!r} has elements beyond its codebook or shape", section="DATA"
        )


def _without_many_zeros(symbols: Symbols) -> Symbols:
    """Leave out stored zeros where these are most elements, whatever layout the file chose."""
    zeros = np.flatnonzero(symbols.codebook == 0)
    if symbols.positions is not None or zeros.size != 1 or symbols.symbols.size == 0:
        return symbols
    flat = symbols.symbols.reshape(-1)
    positions = np.flatnonzero(flat != zeros[0])
    if positions.size >= SPARSE_BELOW_DENSITY * flat.size:
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


def row_factors(
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


def coordinates(
    positions: np.ndarray, stored_shape: tuple[int, ...], permutation: tuple[int, ...], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows and columns of elements after permuting axes and reshaping to `shape`."""
    if permutation != tuple(range(len(stored_shape))):
        stored = np.unravel_index(positions, stored_shape)
        permuted_shape = tuple(stored_shape[axis] for axis in permutation)
        positions = np.ravel_multi_index([stored[axis] for axis in permutation], permuted_shape)
    return positions // shape[1], positions % shape[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixWeights:
    """A matrix, as compact as it can be had without decoding it.

    Attributes
    ----------
    constant : Constant or None
        Where the floats come from, as long as the file is open.
    shape : (int, int)
        Rows being outputs.
    floats : ndarray of float32 or None
    symbols : Symbols or None
        Its symbols, not yet reshaped; None if it is not quantized.
    permutation : tuple of int
    factors : ndarray or None
        A factor for each row.
    """

    constant: Constant | None
    shape: tuple[int, int]
    floats: np.ndarray | None
    symbols: Symbols | None
    permutation: tuple[int, ...]
    factors: np.ndarray | None

    def decoded(self) -> np.ndarray:
        """Return the floats, shape (n_rows, n_columns)."""
        if self.floats is not None:
            return self.floats
        if self.constant is not None:
            return self.constant.array().reshape(self.shape)
        assert self.symbols is not None
        symbols = self.symbols
        out = np.zeros(math.prod(symbols.shape), dtype=np.float32)
        out[slice(None) if symbols.positions is None else symbols.positions] = symbols.codebook[
            symbols.symbols.reshape(-1)
        ]
        matrix = out.reshape(symbols.shape).transpose(self.permutation).reshape(self.shape)
        return matrix if self.factors is None else matrix * self.factors[:, None]

    def detached(self) -> MatrixWeights:
        """Return the same matrix without need of the file."""
        return replace(self, floats=self.decoded() if self.symbols is None else None, constant=None)

    def without_factors(self) -> MatrixWeights:
        """Return the same matrix before its rows are multiplied."""
        return replace(self, factors=None)

    def nonzeros(self) -> tuple[np.ndarray, np.ndarray, Symbols] | None:
        """Return rows and columns of the stored elements; None if the matrix is not sparse."""
        symbols = self.symbols
        if symbols is None or symbols.positions is None or symbols.density >= SPARSE_BELOW_DENSITY:
            return None
        return *coordinates(symbols.positions, symbols.shape, self.permutation, self.shape), symbols

    def every_symbol(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return symbols, shape (n_rows, n_columns), and their codebook; None if not quantized."""
        full = None if self.symbols is None else with_zeros_stored(self.symbols)
        if full is None:
            return None
        return full.symbols.reshape(full.shape).transpose(self.permutation).reshape(self.shape), full.codebook


def read_matrix(constant: Constant, shape: tuple[int, int]) -> MatrixWeights:
    """Return a constant as a matrix of some shape, its elements in the constant's order."""
    found = constant.packed() if math.prod(shape) else None
    permutation = tuple(range(len(constant.shape)))
    symbols: Symbols | None = None
    factors: np.ndarray | None = None
    if found is not None:
        packed: PackedTensor
        packed, permutation = found
        if packed.scales is None:
            symbols = symbols_of(packed)
        else:
            factors = row_factors(packed, permutation, shape)
            symbols = None if factors is None else symbols_of(replace(packed, scales=None))
    return MatrixWeights(
        constant=constant, shape=shape, floats=None, symbols=symbols, permutation=permutation, factors=factors
    )
