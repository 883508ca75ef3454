"""Matrix products."""

from __future__ import annotations

import math

import numpy as np

from nqruntime.matrices import Matrix, StorageOrder, build_matrix

from .registry import NodeContext, Prepared, Run, operator


@operator("Gemm", 7)
def gemm(context: NodeContext) -> Run | Prepared:
    """Return alpha * op(a) @ op(b) + beta * c; a constant b stays compressed."""
    alpha, beta = context.number("alpha", 1.0), context.number("beta", 1.0)
    transpose_a, transpose_b = context.integer("transA", 0), context.integer("transB", 0)

    def finish(product: np.ndarray, c: np.ndarray | None) -> np.ndarray:
        scaled = product if alpha == 1.0 else product * product.dtype.type(alpha)
        if c is None or beta == 0.0:
            return scaled
        total: np.ndarray = scaled + (c if beta == 1.0 else c * c.dtype.type(beta))
        return total

    matrix = _weight_matrix(context, transposed=not transpose_b)
    if matrix is None:
        return lambda a, b, c=None: finish((a.T if transpose_a else a) @ (b.T if transpose_b else b), c)

    def run(a: np.ndarray, _: None, c: np.ndarray | None = None) -> np.ndarray:
        return finish(matrix.multiply(a if transpose_a else a.T).T, c)

    return Prepared(run=run, kernel=matrix.label, weight_bytes=matrix.weight_bytes, taken=(1,))


@operator("MatMul")
def matmul(context: NodeContext) -> Run | Prepared:
    """Return a @ b; a constant b of two axes stays compressed."""
    matrix = _weight_matrix(context, transposed=True)
    if matrix is None:
        return np.matmul

    def run(a: np.ndarray, _: None) -> np.ndarray:
        product = matrix.multiply(a.reshape(math.prod(a.shape[:-1]), a.shape[-1]).T)
        return np.ascontiguousarray(product.T).reshape(*a.shape[:-1], product.shape[0])

    return Prepared(run=run, kernel=matrix.label, weight_bytes=matrix.weight_bytes, taken=(1,))


def _weight_matrix(context: NodeContext, *, transposed: bool) -> Matrix | None:
    """Return the second operand with its outputs as rows; None if it is no constant of two axes."""
    constant = context.constant(1)
    if constant is None:
        return None
    shape = constant.shape
    if len(shape) != 2:
        return None
    if transposed:
        constant, shape = constant.transposed((1, 0)), shape[::-1]
    return build_matrix(constant, (shape[0], shape[1]), StorageOrder.COLUMNS, context.library)
