"""Compute kernels: Numba where it pays, NumPy otherwise.

The two agree to rounding, not to the bit. The environment variable ``NQFORMAT_KERNELS`` (``auto``, ``numba``
or ``numpy``) forces a path for all packages; ``auto`` takes Numba when it is already imported or when one
run of the network is enough work to be worth the import.
"""

from __future__ import annotations

import numpy as np

from nqformat.kernels import use_numba

from .reference import (
    expand_symbols_reference,
    multiply_columns_reference,
    multiply_palette_reference,
    multiply_rows_reference,
    multiply_tiles,
)
from .workers import Workers

__all__ = [
    "Workers",
    "expand_symbols",
    "multiply_columns",
    "multiply_palette",
    "multiply_rows",
    "worth_numba",
]

_COLUMN_TILE = 512
_MULTIPLICATIONS_A_SYMBOL = 2


def worth_numba(n_multiplications: int) -> bool:
    """Decide whether a network with so many multiplications in a run uses Numba kernels."""
    return use_numba(n_multiplications // _MULTIPLICATIONS_A_SYMBOL)


def multiply_rows(
    starts: np.ndarray,
    minors: np.ndarray,
    symbols: np.ndarray,
    codebook: np.ndarray,
    right: np.ndarray,
    n_rows: int,
    workers: Workers | None,
) -> np.ndarray:
    """Multiply a matrix stored by rows with `right`; see `multiply_rows_reference`.

    Parameters
    ----------
    workers : Workers or None
        Threads for the Numba kernel; None takes the NumPy path.

    Returns
    -------
    ndarray of float32, shape (n_rows, n)
    """
    out = np.empty((n_rows, right.shape[1]), dtype=np.float32)
    if workers is None:
        multiply_rows_reference(starts, minors, symbols, codebook, right, out)
        return out
    from . import products

    contiguous = np.ascontiguousarray(right)

    def multiply_tile(begin: int, end: int) -> None:
        _check(products.multiply_rows(starts, minors, symbols, codebook, contiguous, out, begin, end))

    workers.run_tiles(multiply_tile, right.shape[1], _COLUMN_TILE, work_a_column=symbols.size)
    return out


def multiply_columns(
    starts: np.ndarray,
    minors: np.ndarray,
    symbols: np.ndarray,
    codebook: np.ndarray,
    right: np.ndarray,
    n_rows: int,
    workers: Workers | None,
) -> np.ndarray:
    """Multiply a matrix stored by columns with `right`; a single column skips its zeros.

    Returns
    -------
    ndarray of float32, shape (n_rows, n)
    """
    out = np.empty((n_rows, right.shape[1]), dtype=np.float32)
    if workers is None:
        multiply_columns_reference(starts, minors, symbols, codebook, right, out)
        return out
    from . import products

    contiguous = np.ascontiguousarray(right)
    if right.shape[1] == 1:
        _check(
            products.multiply_vector(
                starts, minors, symbols, codebook, contiguous.reshape(-1), out.reshape(-1)
            )
        )
        return out

    def multiply_tile(begin: int, end: int) -> None:
        _check(products.multiply_columns(starts, minors, symbols, codebook, contiguous, out, begin, end))

    workers.run_tiles(multiply_tile, right.shape[1], _COLUMN_TILE, work_a_column=symbols.size)
    return out


def multiply_palette(
    symbols: np.ndarray, codebook: np.ndarray, right: np.ndarray, *, numba: bool
) -> np.ndarray:
    """Multiply a matrix with a symbol for each element with `right`; see `multiply_palette_reference`.

    Returns
    -------
    ndarray of float32, shape (n_rows, n)
    """
    out = np.empty((symbols.shape[0], right.shape[1]), dtype=np.float32)
    if not numba:
        multiply_palette_reference(symbols, codebook, right, out)
        return out
    from . import products

    if right.shape[1] == 1:
        vector = np.ascontiguousarray(right).reshape(-1)
        _check(products.multiply_palette(symbols.reshape(-1), codebook, vector, out.reshape(-1)))
        return out
    multiply_tiles(symbols, out, right, lambda tile: expand_symbols(tile, codebook, numba=True))
    return out


def expand_symbols(symbols: np.ndarray, codebook: np.ndarray, *, numba: bool) -> np.ndarray:
    """Return the codebook's value for each symbol, in the shape of `symbols`."""
    out = np.empty(symbols.shape, dtype=np.float32)
    if not numba:
        expand_symbols_reference(symbols.reshape(-1), codebook, out.reshape(-1))
        return out
    from . import products

    _check(products.expand_symbols(np.ascontiguousarray(symbols).reshape(-1), codebook, out.reshape(-1)))
    return out


def _check(status: int) -> None:
    """Matrices are validated when they are built, so a refusal by a kernel is our own mistake."""
    if status != 0:
        raise AssertionError("a kernel refused arrays that were built for it")
