"""Cholesky factors and triangular inverses in the memory of the matrix, in blocks."""

from __future__ import annotations

import numpy as np

__all__ = ["factor_in_place", "invert_in_place"]

_BLOCK = 128


def factor_in_place(matrix: np.ndarray) -> None:
    """Turn a symmetric positive definite matrix into its lower Cholesky factor.

    Takes ``n^3 / 3`` multiplications and besides the matrix ``128 n`` numbers.

    Parameters
    ----------
    matrix : ndarray of float64, shape (n, n)

    Raises
    ------
    numpy.linalg.LinAlgError
        If it is not positive definite.

    Source : left-looking block algorithm, Golub and Van Loan 2013, section 4.2.6

    Examples
    --------
    >>> matrix = np.array([[4.0, 2.0], [2.0, 5.0]])
    >>> factor_in_place(matrix)
    >>> matrix
    array([[2., 0.],
           [1., 2.]])
    """
    n = len(matrix)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        column = matrix[start:, start:stop]
        if start:
            column -= matrix[start:, :start] @ matrix[start:stop, :start].T
        corner = np.linalg.cholesky(column[: stop - start])
        column[: stop - start] = corner
        column[stop - start :] = np.linalg.solve(corner, column[stop - start :].T).T
        matrix[:start, start:stop] = 0.0


def invert_in_place(factor: np.ndarray) -> None:
    """Turn a lower triangular matrix into its inverse.

    Takes ``n^3 / 3`` multiplications and besides the matrix ``256 n`` numbers.

    Parameters
    ----------
    factor : ndarray of float64, shape (n, n)
        With a diagonal without zeros.

    Source : Golub and Van Loan 2013, section 3.1.8

    Examples
    --------
    >>> factor = np.array([[2.0, 0.0], [1.0, 2.0]])
    >>> invert_in_place(factor)
    >>> factor
    array([[ 0.5 ,  0.  ],
           [-0.25,  0.5 ]])
    """
    n = len(factor)
    for start in range(0, n, _BLOCK):
        stop = min(start + _BLOCK, n)
        corner = np.tril(np.linalg.inv(factor[start:stop, start:stop]))
        if start:
            factor[start:stop, :start] = -(corner @ (factor[start:stop, :start] @ factor[:start, :start]))
        factor[start:stop, start:stop] = corner
