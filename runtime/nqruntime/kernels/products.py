"""Numba kernels for matrices of codebook symbols; imported on first use only.

Every kernel is pure: contiguous arrays in, preallocated output filled, an int32 status returned (0, or 1 if
the arrays do not fit together). Each index is compared with its bound before use: `starts` must ascend within
`minors`, every minor lie below the other dimension, and codebooks are as long as their symbols' dtype reaches
or are checked symbol by symbol. Results depend neither on the bounds of a column range nor on threads.
"""

from __future__ import annotations

import numba
import numpy as np
from numba import types

_STARTS = types.Array(types.int64, 1, "C", readonly=True)
_VALUES = types.Array(types.float32, 1, "C", readonly=True)
_RIGHT = types.Array(types.float32, 2, "C", readonly=True)
_OUT_VECTOR = types.Array(types.float32, 1, "C")
_OUT = types.Array(types.float32, 2, "C")


def _readonly(element: types.Type) -> types.Array:
    return types.Array(element, 1, "C", readonly=True)


_STORED = [
    (_STARTS, _readonly(minor), _readonly(symbol), _VALUES)
    for minor in (types.uint16, types.uint32)
    for symbol in (types.uint8, types.uint16)
]
_RANGE = (types.int64, types.int64)
_BLOCK = 512


@numba.njit([types.int32(*stored, _VALUES, _OUT_VECTOR) for stored in _STORED], cache=True, nogil=True)
def multiply_vector(starts, minors, symbols, codebook, right, out):  # type: ignore[no-untyped-def]
    """Multiply a matrix stored by columns with a vector, skipping its zeros.

    Parameters
    ----------
    starts : int64[n_columns + 1]
    minors : uint16 or uint32[n_stored]
        Row of each element.
    symbols : uint8 or uint16[n_stored]
    codebook : float32[n_entries]
    right : float32[n_columns]
    out : float32[n_rows]
    """
    if right.size != starts.size - 1 or minors.size != symbols.size:
        return 1
    for row in range(out.size):
        out[row] = np.float32(0)
    for column in range(right.size):
        factor = right[column]
        first = starts[column]
        last = starts[column + 1]
        if first < 0 or last > minors.size:
            return 1
        if factor != np.float32(0):
            for j in range(first, last):
                row = minors[j]
                symbol = symbols[j]
                if row >= out.size or symbol >= codebook.size:
                    return 1
                out[row] += factor * codebook[symbol]
    return 0


@numba.njit([types.int32(*stored, _RIGHT, _OUT, *_RANGE) for stored in _STORED], cache=True, nogil=True)
def multiply_columns(starts, minors, symbols, codebook, right, out, begin, end):  # type: ignore[no-untyped-def]
    """Fill ``out[:, begin:end]`` with a matrix stored by columns times ``right[:, begin:end]``.

    Parameters
    ----------
    starts, minors, symbols, codebook
        As in :func:`multiply_vector`.
    right : float32[n_columns, n]
    out : float32[n_rows, n]
    begin, end : int64
    """
    if right.shape[0] != starts.size - 1 or minors.size != symbols.size:
        return 1
    if begin < 0 or end < begin or end > right.shape[1] or end > out.shape[1]:
        return 1
    for row in range(out.shape[0]):
        for n in range(begin, end):
            out[row, n] = np.float32(0)
    for column in range(right.shape[0]):
        first = starts[column]
        last = starts[column + 1]
        if first < 0 or last > minors.size:
            return 1
        factors = right[column, begin:end]
        for j in range(first, last):
            row = minors[j]
            symbol = symbols[j]
            if row >= out.shape[0] or symbol >= codebook.size:
                return 1
            weight = codebook[symbol]
            sums = out[row, begin:end]
            for n in range(end - begin):
                sums[n] += weight * factors[n]
    return 0


@numba.njit([types.int32(*stored, _RIGHT, _OUT, *_RANGE) for stored in _STORED], cache=True, nogil=True)
def multiply_rows(starts, minors, symbols, codebook, right, out, begin, end):  # type: ignore[no-untyped-def]
    """Fill ``out[:, begin:end]`` with a matrix stored by rows times ``right[:, begin:end]``.

    Four elements of a row are taken at once, so that a sum is read and written once for four products.

    Parameters
    ----------
    starts : int64[n_rows + 1]
    minors : uint16 or uint32[n_stored]
        Column of each element.
    symbols : uint8 or uint16[n_stored]
    codebook : float32[n_entries]
    right : float32[n_columns, n]
    out : float32[n_rows, n]
    begin, end : int64
    """
    if out.shape[0] != starts.size - 1 or minors.size != symbols.size:
        return 1
    if begin < 0 or end < begin or end > right.shape[1] or end > out.shape[1]:
        return 1
    for j in range(minors.size):
        if minors[j] >= right.shape[0] or symbols[j] >= codebook.size:
            return 1
    for row in range(out.shape[0]):
        j = starts[row]
        last = starts[row + 1]
        if j < 0 or last > minors.size:
            return 1
        sums = out[row, begin:end]
        for n in range(end - begin):
            sums[n] = np.float32(0)
        while j + 4 <= last:
            weight_0 = codebook[symbols[j]]
            weight_1 = codebook[symbols[j + 1]]
            weight_2 = codebook[symbols[j + 2]]
            weight_3 = codebook[symbols[j + 3]]
            factors_0 = right[minors[j], begin:end]
            factors_1 = right[minors[j + 1], begin:end]
            factors_2 = right[minors[j + 2], begin:end]
            factors_3 = right[minors[j + 3], begin:end]
            for n in range(end - begin):
                sums[n] += (weight_0 * factors_0[n] + weight_1 * factors_1[n]) + (
                    weight_2 * factors_2[n] + weight_3 * factors_3[n]
                )
            j += 4
        while j < last:
            weight_0 = codebook[symbols[j]]
            factors_0 = right[minors[j], begin:end]
            for n in range(end - begin):
                sums[n] += weight_0 * factors_0[n]
            j += 1
    return 0


@numba.njit(
    [types.int32(_readonly(symbol), _VALUES, _VALUES, _OUT_VECTOR) for symbol in (types.uint8, types.uint16)],
    cache=True,
    nogil=True,
)
def multiply_palette(symbols, codebook, right, out):  # type: ignore[no-untyped-def]
    """Multiply a matrix with a symbol for each element with a vector, four rows at once.

    Sums run over blocks of columns, which keeps rounding small in long rows.

    Parameters
    ----------
    symbols : uint8 or uint16[n_rows * n_columns]
        In C order.
    codebook : float32[n_entries]
    right : float32[n_columns]
    out : float32[n_rows]
    """
    n_columns = right.size
    if symbols.size != out.size * n_columns:
        return 1
    if symbols.size > 0:
        highest = symbols[0]
        for j in range(symbols.size):
            highest = max(highest, symbols[j])
        if highest >= codebook.size:
            return 1
    row = 0
    while row + 4 <= out.size:
        row_0 = symbols[row * n_columns : (row + 1) * n_columns]
        row_1 = symbols[(row + 1) * n_columns : (row + 2) * n_columns]
        row_2 = symbols[(row + 2) * n_columns : (row + 3) * n_columns]
        row_3 = symbols[(row + 3) * n_columns : (row + 4) * n_columns]
        out[row : row + 4] = np.float32(0)
        for begin in range(0, n_columns, _BLOCK):
            sum_0 = np.float32(0)
            sum_1 = np.float32(0)
            sum_2 = np.float32(0)
            sum_3 = np.float32(0)
            for n in range(begin, min(begin + _BLOCK, n_columns)):
                factor = right[n]
                sum_0 += codebook[row_0[n]] * factor
                sum_1 += codebook[row_1[n]] * factor
                sum_2 += codebook[row_2[n]] * factor
                sum_3 += codebook[row_3[n]] * factor
            out[row] += sum_0
            out[row + 1] += sum_1
            out[row + 2] += sum_2
            out[row + 3] += sum_3
        row += 4
    while row < out.size:
        out[row] = np.float32(0)
        for begin in range(0, n_columns, _BLOCK):
            sum_0 = np.float32(0)
            for n in range(begin, min(begin + _BLOCK, n_columns)):
                sum_0 += codebook[symbols[row * n_columns + n]] * right[n]
            out[row] += sum_0
        row += 1
    return 0


@numba.njit(
    [types.int32(_readonly(symbol), _VALUES, _OUT_VECTOR) for symbol in (types.uint8, types.uint16)],
    cache=True,
    nogil=True,
)
def expand_symbols(symbols, codebook, out):  # type: ignore[no-untyped-def]
    """Fill `out` with the codebook's value for each symbol.

    Parameters
    ----------
    symbols : uint8 or uint16[n]
    codebook : float32[n_entries]
    out : float32[n]
    """
    if symbols.size != out.size:
        return 1
    for i in range(symbols.size):
        symbol = symbols[i]
        if symbol >= codebook.size:
            return 1
        out[i] = codebook[symbol]
    return 0
