"""NumPy references of the compute kernels: the oracle in tests and the path without Numba.

A sparse matrix of shape (n_rows, n_columns) is given by `starts`, `minors`, `symbols` and a codebook. Stored
by rows, the elements of row r are ``starts[r]:starts[r + 1]`` and `minors` are their columns; stored by
columns it is the other way round. Dense tiles of at most a megabyte are made on the way, never the matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_TILE_ELEMENTS = 1 << 18


def multiply_rows_reference(
    starts: np.ndarray,
    minors: np.ndarray,
    symbols: np.ndarray,
    codebook: np.ndarray,
    right: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill `out` with a matrix stored by rows times `right`.

    Parameters
    ----------
    right : ndarray of float32, shape (n_columns, n)
    out : ndarray of float32, shape (n_rows, n)
    """
    n_rows, n_columns = out.shape[0], right.shape[0]
    height = max(1, _TILE_ELEMENTS // max(1, n_columns))
    for first in range(0, n_rows, height):
        last = min(first + height, n_rows)
        tile = _dense_tile(starts[first : last + 1], minors, symbols, codebook, n_columns)
        np.matmul(tile, right, out=out[first:last])


def multiply_columns_reference(
    starts: np.ndarray,
    minors: np.ndarray,
    symbols: np.ndarray,
    codebook: np.ndarray,
    right: np.ndarray,
    out: np.ndarray,
) -> None:
    """Fill `out` with a matrix stored by columns times `right`; shapes as in `multiply_rows_reference`."""
    if right.shape[1] == 1:
        factors = np.repeat(right[:, 0], np.diff(starts))
        out[:, 0] = np.bincount(minors, weights=factors * codebook[symbols], minlength=out.shape[0])
        return
    n_rows, n_columns = out.shape[0], right.shape[0]
    out[:] = 0
    height = max(1, _TILE_ELEMENTS // max(1, n_rows))
    for first in range(0, n_columns, height):
        last = min(first + height, n_columns)
        tile = _dense_tile(starts[first : last + 1], minors, symbols, codebook, n_rows)
        out += tile.T @ right[first:last]


def multiply_palette_reference(
    symbols: np.ndarray, codebook: np.ndarray, right: np.ndarray, out: np.ndarray
) -> None:
    """Fill `out` with a matrix given by a symbol for each element times `right`.

    Parameters
    ----------
    symbols : ndarray of uint8 or uint16, shape (n_rows, n_columns)
    """
    multiply_tiles(symbols, out, right, lambda tile: codebook[tile])


def multiply_tiles(
    symbols: np.ndarray, out: np.ndarray, right: np.ndarray, expand: Callable[[np.ndarray], np.ndarray]
) -> None:
    """Fill `out` with products of a few expanded rows of symbols at a time."""
    height = max(1, _TILE_ELEMENTS // max(1, symbols.shape[1]))
    for first in range(0, symbols.shape[0], height):
        np.matmul(expand(symbols[first : first + height]), right, out=out[first : first + height])


def expand_symbols_reference(symbols: np.ndarray, codebook: np.ndarray, out: np.ndarray) -> None:
    """Fill `out` with the codebook's value for each symbol; all one-dimensional."""
    np.take(codebook, symbols, out=out, mode="clip")


def _dense_tile(
    starts: np.ndarray, minors: np.ndarray, symbols: np.ndarray, codebook: np.ndarray, n_minor: int
) -> np.ndarray:
    """Return consecutive major lines of a sparse matrix, with their zeros."""
    n_major = starts.size - 1
    stored = slice(int(starts[0]), int(starts[-1]))
    majors = np.repeat(np.arange(n_major), np.diff(starts))
    tile = np.zeros((n_major, n_minor), dtype=np.float32)
    tile[majors, minors[stored]] = codebook[symbols[stored]]
    return tile
