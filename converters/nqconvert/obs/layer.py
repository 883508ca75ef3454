"""One layer, ready to be quantized with any step and penalty."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from nqconvert.kernels import trace_removals

from .factoring import factor_in_place, invert_in_place
from .scratch import Scratch, release
from .statistics import LayerHessians

__all__ = ["Factor", "Layer", "Row", "prepare_layer"]

_SHARED_DAMPING = 1e-2
_ROW_DAMPING = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """An output with a Hessian of its own, and the order in which its weights can go.

    Attributes
    ----------
    kept : ndarray of int64, shape (n,)
        Its nonzero inputs.
    hessian : ndarray of float64, shape (n + free, n + free)
        Damped.
    order : ndarray of int32, shape (n,)
        Weights in the order of their removal.
    losses : ndarray of float64, shape (n,)
        What each removal adds to the loss, made ascending.
    """

    kept: np.ndarray
    hessian: np.ndarray
    order: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """Inverse Hessian of a range of a group's inputs, factored.

    Attributes
    ----------
    places : ndarray of int64, shape (n,)
        Inputs in the order they are quantized, the constant of a bias last.
    factor : ndarray of float32, shape (n, n)
        Upper Cholesky factor of the inverse.
    n_free : int
    """

    places: np.ndarray
    factor: np.ndarray
    n_free: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What stays the same while steps and penalties are tried.

    Attributes
    ----------
    statistics : LayerHessians
    matrices : ndarray of float32 or float64, shape (groups, outputs, inputs)
    bias : ndarray of float64, shape (groups * outputs,), or None
    curvature : float
        Geometric mean over weights of the second derivative of the loss, all later weights free to make up
        for a change.
    bias_curvature : float
        Mean second derivative of the loss by a bias, all weights fixed.
    zeros : ndarray of bool or None
        Weights of a pruned layer that stay zero.
    rows : list of Row
    factors : list of list of Factor
        By group; empty if there are rows.
    """

    statistics: LayerHessians
    matrices: np.ndarray
    bias: np.ndarray | None
    curvature: float
    bias_curvature: float = 0.0
    zeros: np.ndarray | None = None
    rows: list[Row] = field(default_factory=list)
    factors: list[list[Factor]] = field(default_factory=list)


def prepare_layer(
    statistics: LayerHessians, weight: np.ndarray, bias: np.ndarray | None, scratch: Scratch | None = None
) -> Layer:
    """Damp and invert a layer's Hessians; they are dropped from `statistics`.

    Parameters
    ----------
    statistics : LayerHessians
    weight : ndarray
    bias : ndarray or None
    scratch : Scratch, optional
        That made the Hessians, and keeps the factors.

    Source : damping by a share of the mean diagonal: Frantar et al. 2022, section 3
    """
    matrices = statistics.product.matrices(
        weight if weight.dtype == np.float32 else weight.astype(np.float64)
    )
    wide_bias = None if bias is None or not statistics.n_free else bias.astype(np.float64).reshape(-1)
    if statistics.rows is not None:
        rows, curvature = _traced_rows(statistics, matrices)
        statistics.rows = None
        return Layer(
            statistics=statistics,
            matrices=matrices,
            bias=wide_bias,
            curvature=curvature,
            bias_curvature=float(np.mean([r.hessian[-1, -1] for r in rows])) if statistics.n_free else 0.0,
            rows=rows,
        )
    factors, curvature = _factored(statistics, scratch)
    statistics.shared = None
    zeros = matrices == 0
    return Layer(
        statistics=statistics,
        matrices=matrices,
        bias=wide_bias,
        curvature=curvature,
        bias_curvature=float(np.mean([group[-1].factor[-1, -1] ** -2.0 for group in factors])),
        zeros=zeros if 2 * np.count_nonzero(zeros) > zeros.size else None,
        factors=factors,
    )


def _traced_rows(statistics: LayerHessians, matrices: np.ndarray) -> tuple[list[Row], float]:
    hessians, n_free = statistics.rows, statistics.n_free
    assert hessians is not None
    diagonals = np.concatenate([np.diag(h)[: h.shape[0] - n_free] for h in hessians])
    mean = float(diagonals.mean()) if diagonals.size else 0.0
    added = _ROW_DAMPING * mean if mean > 0 else 1.0
    rows = []
    for kept, weights, hessian in zip(
        statistics.kept, matrices.reshape(-1, matrices.shape[2]), hessians, strict=True
    ):
        damped = hessian + added * np.eye(hessian.shape[0])
        values = np.append(weights[kept], np.zeros(n_free))
        order, losses = trace_removals(values, np.linalg.inv(damped), kept.size)
        rows.append(Row(kept=kept, hessian=damped, order=order, losses=np.maximum.accumulate(losses)))
    return rows, mean if mean > 0 else 1.0


def _factored(statistics: LayerHessians, scratch: Scratch | None) -> tuple[list[list[Factor]], float]:
    assert statistics.shared is not None
    factors: list[list[Factor]] = []
    logarithms = []
    for hessians in statistics.shared:
        made = []
        for block, hessian in zip(statistics.blocks, hessians, strict=True):
            places, factor = _factor(hessian, block.n_free)
            pivots = np.diag(factor)[: places.size - block.n_free]
            logarithms.append(-2.0 * np.log(pivots))
            narrow = np.ascontiguousarray(factor, np.float32)
            del factor
            if scratch is not None:
                scratch.forget(hessian)
                narrow = scratch.kept(narrow)
            made.append(Factor(places=block.start + places, factor=narrow, n_free=block.n_free))
        factors.append(made)
    return factors, math.exp(float(np.concatenate(logarithms).mean()))


def _factor(hessian: np.ndarray, n_free: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs by falling second moment, and the upper Cholesky factor of the inverse in that order."""
    diagonal = np.diag(hessian)
    n_inputs = diagonal.size - n_free
    mean = float(diagonal[:n_inputs].mean(dtype=np.float64))
    added = _SHARED_DAMPING * mean if mean > 0 else 1.0
    places = np.append(
        np.argsort(-diagonal[:n_inputs], kind="stable"), np.arange(n_inputs, diagonal.size)
    ).astype(np.int64)
    damped = np.empty(hessian.shape)
    for row, place in enumerate(places[::-1]):
        damped[row] = hessian[place][places[::-1]]
    release(hessian)
    damped[np.diag_indices_from(damped)] += added
    factor_in_place(damped)
    invert_in_place(damped)
    return places, damped[::-1, ::-1]
