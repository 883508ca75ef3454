"""NumPy references of the error-feedback kernels."""

from __future__ import annotations

import numpy as np

__all__ = ["feed_back_reference", "trace_removals_reference"]


def feed_back_reference(
    values: np.ndarray,
    factor: np.ndarray,
    scales: np.ndarray,
    step: float,
    prices: np.ndarray,
    zeros: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, float]:
    """See :func:`nqconvert.kernels.feed_back`."""
    chosen = np.zeros(zeros.shape, np.int32)
    errors = np.zeros(zeros.shape)
    loss = 0.0
    for j in range(zeros.shape[0]):
        curvatures = 0.5 / factor[j, j] ** 2 * scales
        chosen[j] = _cheapest(values[j], step, curvatures, prices)
        chosen[j, zeros[j]] = 0
        error = values[j] - step * chosen[j]
        loss += float((curvatures * error**2).sum())
        errors[j] = error / factor[j, j]
        values[j + 1 :] -= factor[j, j + 1 :][:, None] * errors[j]
    return chosen, errors, loss


def _cheapest(values: np.ndarray, step: float, curvatures: np.ndarray, prices: np.ndarray) -> np.ndarray:
    reach = prices.size // 2
    nearest = np.rint(np.clip(values / step, -reach, reach)).astype(np.int32)
    inner = nearest - np.sign(nearest)
    best = nearest
    least = curvatures * (values - step * nearest) ** 2 + prices[nearest + reach]
    for candidate in (inner, np.zeros_like(nearest)):
        cost = curvatures * (values - step * candidate) ** 2 + prices[candidate + reach]
        best = np.where(cost < least, candidate, best)
        least = np.minimum(cost, least)
    return best


def trace_removals_reference(
    values: np.ndarray, inverse: np.ndarray, n_removable: int
) -> tuple[np.ndarray, np.ndarray]:
    """See :func:`nqconvert.kernels.trace_removals`."""
    values, inverse = values.copy(), inverse.copy()
    alive = np.ones(values.size, dtype=bool)
    order, losses = np.zeros(n_removable, np.int32), np.zeros(n_removable)
    for place in range(n_removable):
        diagonal = np.diag(inverse)[:n_removable]
        cost = np.full(n_removable, np.inf)
        left = alive[:n_removable]
        cost[left] = values[:n_removable][left] ** 2 / diagonal[left]
        best = int(np.argmin(cost))
        order[place], losses[place] = best, 0.5 * cost[best]
        alive[best] = False
        column = inverse[best] / inverse[best, best]
        values[alive] -= values[best] * column[alive]
        inverse[np.ix_(alive, alive)] -= np.outer(column[alive], inverse[best, alive])
    return order, losses
