"""Products with compressed matrices in NumPy: the path without machine code.

A sparse matrix of shape (n_rows, n_columns) is given by `starts`, `minors`, `symbols` and a codebook. Stored
by rows, the elements of row r are ``starts[r]:starts[r + 1]`` and `minors` are their columns; stored by
columns it is the other way round. Dense tiles of at most a megabyte are made on the way, never the matrix.
"""

from __future__ import annotations

import numpy as np

_TILE_ELEMENTS = 1 << 18


def multiply_rows(  # noqa: PLR0917
    starts: np.ndarray,
    minors: np.ndarray,
    symbols: np.ndarray,
    codebook: np.ndarray,
    right: np.ndarray,
    n_rows: int,
) -> np.ndarray:
    """Multiply a matrix stored by rows with `right`.

    Parameters
    ----------
    right : ndarray of float32, shape (n_columns, n)

    Returns
    -------
    ndarray of float32, shape (n_rows, n)
    """
    out = np.empty((n_rows, right.shape[1]), dtype=np.float32)
    n_columns = right.shape[0]
    height = max(1, _TILE_ELEMENTS // max(1, n_columns))
    for first in range(0, n_rows, height):
        last = min(first + height, n_rows)
        tile = _dense_tile(starts[first : last + 1], minors, symbols, codebook, n_columns)
        np.matmul(tile, right, out=out[first:last])
    return out


def multiply_columns(  # noqa: PLR0917
    starts: np.ndarray,
    minors: np.ndarray,
    symbols: np.ndarray,
    codebook: np.ndarray,
    right: np.ndarray,
    n_rows: int,
) -> np.ndarray:
    """Multiply a matrix stored by columns with `right`; shapes as in `multiply_rows`."""
    out = np.zeros((n_rows, right.shape[1]), dtype=np.float32)
    if right.shape[1] == 1:
        factors = np.repeat(right[:, 0], np.diff(starts))
        out[:, 0] = np.bincount(minors, weights=factors * codebook[symbols], minlength=n_rows)
        return out
    n_columns = right.shape[0]
    height = max(1, _TILE_ELEMENTS // max(1, n_rows))
    for first in range(0, n_columns, height):
        last = min(first + height, n_columns)
        tile = _dense_tile(starts[first : last + 1], minors, symbols, codebook, n_rows)
        out += tile.T @ right[first:last]
    return out


def multiply_palette(symbols: np.ndarray, codebook: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Multiply a matrix given by a symbol for each element with `right`, a few expanded rows at a time.

    Parameters
    ----------
    symbols : ndarray of uint8 or uint16, shape (n_rows, n_columns)

    Returns
    -------
    ndarray of float32, shape (n_rows, n)
    """
    out = np.empty((symbols.shape[0], right.shape[1]), dtype=np.float32)
    height = max(1, _TILE_ELEMENTS // max(1, symbols.shape[1]))
    for first in range(0, symbols.shape[0], height):
        tile = expand_symbols(symbols[first : first + height], codebook)
        np.matmul(tile, right, out=out[first : first + height])
    return out


def expand_symbols(symbols: np.ndarray, codebook: np.ndarray) -> np.ndarray:
    """Return the codebook's value for each symbol, in the shape of `symbols`."""
    return np.take(codebook, symbols, mode="clip")


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
