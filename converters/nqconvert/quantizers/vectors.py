"""K-means of vectors: k-means++ seeding and Lloyd's iteration."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["cluster_vectors", "nearest_vectors"]

_MAX_ROUNDS = 40
_TOLERANCE = 1e-4
_SEEDING_POINTS = 1 << 14
_FITTED_POINTS = 1 << 16
_AT_ONCE = 1 << 14


def cluster_vectors(
    points: np.ndarray, weights: np.ndarray | None, k: int, rng: np.random.Generator
) -> np.ndarray:
    """Find `k` centres of small weighted squared distance to `points`: a local optimum.

    Parameters
    ----------
    points : ndarray of float32 or float64, shape (n, width), finite
    weights : ndarray or None
        Of each number, shape (n, width), not negative.
    k : int
        At least 1.
    rng : numpy.random.Generator
        For the seeds.

    Returns
    -------
    ndarray of float64, shape (at most k, width)
        All distinct points if these are no more than `k`.

    Notes
    -----
    O(n k width) time a round, at most 40 rounds. Of more than 2**16 points (or 64 for each centre) a random
    sample of that size decides. A centre that loses all points takes the point that is
    farthest from its own.

    Source : Arthur, Vassilvitskii 2007, "k-means++"; Lloyd 1982; Gong, Liu, Yang, Bourdev 2014

    Examples
    --------
    >>> points = np.float32([[0, 0], [0, 1], [5, 5], [5, 6]])
    >>> sorted(cluster_vectors(points, None, 2, np.random.default_rng(0)).tolist())
    [[0.0, 0.5], [5.0, 5.5]]
    """
    fitted, mass = _sample(points, weights, max(_FITTED_POINTS, 64 * k), rng)
    distinct = np.unique(fitted, axis=0)
    if distinct.shape[0] <= k and fitted is not points:
        fitted, mass, distinct = points, weights, np.unique(points, axis=0)
    if distinct.shape[0] <= k:
        return distinct.astype(np.float64)
    points, weights = fitted, mass
    centres = _seeds(points, weights, k, rng)
    before = np.inf
    for _ in range(_MAX_ROUNDS):
        indices, distances = nearest_vectors(points, weights, centres)
        total = float(distances.sum())
        if total >= before * (1 - _TOLERANCE):
            break
        before = total
        centres = _means(points, weights, indices, centres)
        empty = np.flatnonzero(np.bincount(indices, minlength=k) == 0)
        if empty.size:
            centres[empty] = points[np.argsort(-distances, kind="stable")[: empty.size]]
    return centres


def nearest_vectors(
    points: np.ndarray, weights: np.ndarray | None, centres: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest centre of each point and the (weighted) squared distance to it.

    Of two that are equally near, the first.
    """
    indices = np.empty(points.shape[0], dtype=np.int64)
    distances = np.empty(points.shape[0])
    for part in _parts(points.shape[0]):
        found = _distances(points[part], None if weights is None else weights[part], centres)
        indices[part] = found.argmin(axis=1)
        distances[part] = np.take_along_axis(found, indices[part][:, None], axis=1)[:, 0]
    return indices, distances


def _distances(points: np.ndarray, weights: np.ndarray | None, centres: np.ndarray) -> np.ndarray:
    """Squared distances, shape (n, k); not below zero."""
    wide = points.astype(np.float64)
    if weights is None:
        inner = wide @ centres.T
        found = np.square(wide).sum(axis=1)[:, None] - 2 * inner + np.square(centres).sum(axis=1)
    else:
        mass = weights.astype(np.float64)
        found = (mass * np.square(wide)).sum(axis=1)[:, None] - 2 * ((mass * wide) @ centres.T)
        found += mass @ np.square(centres).T
    clipped: np.ndarray = np.maximum(found, 0.0)
    return clipped


def _sample(
    points: np.ndarray, weights: np.ndarray | None, most: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return at most so many points, drawn at random, with their weights."""
    if points.shape[0] <= most:
        return points, weights
    chosen = rng.choice(points.shape[0], size=most, replace=False)
    return points[chosen], None if weights is None else weights[chosen]


def _seeds(points: np.ndarray, weights: np.ndarray | None, k: int, rng: np.random.Generator) -> np.ndarray:
    """Draw starting centres, each with a probability that grows with its distance from those before."""
    points, weights = _sample(points, weights, max(_SEEDING_POINTS, 8 * k), rng)
    wide = points.astype(np.float64)
    mass = None if weights is None else weights.astype(np.float64)
    centres = np.empty((k, wide.shape[1]))
    centres[0] = wide[rng.integers(wide.shape[0])]
    nearest = np.full(wide.shape[0], np.inf)
    for i in range(1, k):
        away = np.square(wide - centres[i - 1])
        nearest = np.minimum(nearest, away.sum(axis=1) if mass is None else (mass * away).sum(axis=1))
        total = nearest.cumsum()
        place = int(np.searchsorted(total, rng.random() * total[-1], side="right"))
        centres[i] = wide[min(place, wide.shape[0] - 1)]
    return centres


def _means(
    points: np.ndarray, weights: np.ndarray | None, indices: np.ndarray, centres: np.ndarray
) -> np.ndarray:
    """Weighted means of the points of each centre; a number without weight stays."""
    means = centres.copy()
    for i in range(points.shape[1]):
        mass = np.ones(points.shape[0]) if weights is None else weights[:, i].astype(np.float64)
        total = np.bincount(indices, weights=mass, minlength=centres.shape[0])
        moment = np.bincount(indices, weights=mass * points[:, i], minlength=centres.shape[0])
        np.divide(moment, total, out=means[:, i], where=total > 0)
    return means


def _parts(n: int) -> Iterator[slice]:
    for start in range(0, n, _AT_ONCE):
        yield slice(start, start + _AT_ONCE)
