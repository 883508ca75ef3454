"""Why quantizers rank as they do: entropy at equal weighted error, with sensitivities changed on purpose.

No network runs here, so no accuracy is luck: if a method saves bytes in this table but not in files at equal
loss, the sensitivities are to blame; if it does not even here, the values are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from quantizer_curves import Workbench

from nqconvert.kernels import nearest_entries
from nqconvert.quantizers.clustering import cluster_1d

_CLUSTERS = (4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
_STEPS = np.geomspace(0.3, 2.0, 12)
_LEVELS = np.geomspace(0.006, 0.04, 5)


def reasons(bench: Workbench) -> dict[str, Any]:
    """Mean ratio of entropy to that of plain k-means, by what was done to the sensitivities.

    Values of all layers in one pool, pruned zeros left out; entries are weighted means of their cells.
    """
    given = bench.sensitivities["fisher"]
    assert given is not None
    parts = [(bench.source.tensors[name].reshape(-1), array.reshape(-1)) for name, array in given.items()]
    values = np.concatenate([value[value != 0] for value, _ in parts]).astype(np.float64)
    measured = [array[value != 0].astype(np.float64) for value, array in parts]
    rng = np.random.default_rng(0)
    variants: dict[str, Callable[[], np.ndarray]] = {
        "as measured": lambda: np.concatenate(measured),
        "square roots": lambda: np.sqrt(np.concatenate(measured)),
        "shuffled in each layer": lambda: np.concatenate([rng.permutation(h) for h in measured]),
        "the layer's mean": lambda: np.concatenate([np.full(h.size, h.mean()) for h in measured]),
        "of mean one in each layer": lambda: np.concatenate([h / h.mean() for h in measured]),
        "shuffled over all layers": lambda: rng.permutation(np.concatenate(measured)),
        "all alike": lambda: np.ones(values.size),
    }
    return {name: _ratios(values, make()) for name, make in variants.items()}


def _ratios(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    energy = float(np.dot(weights, values**2))
    scale = float(np.sqrt(np.mean(values**2)))
    curves = {
        "kmeans": [_cells_of_centres(values, cluster_1d(values, k=k)) for k in _CLUSTERS],
        "hessian-kmeans": [_cells_of_centres(values, cluster_1d(values, weights, k=k)) for k in _CLUSTERS],
        "uniform": [np.rint(values / (step * scale)).astype(np.int64) for step in _STEPS],
    }
    bits = {}
    for name, partitions in curves.items():
        points = sorted(_error_and_entropy(values, weights, cells) for cells in partitions)
        errors, entropies = np.array(points).T
        bits[name] = np.interp(np.log(_LEVELS * energy), np.log(errors), entropies)
    return {name: float(np.mean(found / bits["kmeans"])) for name, found in bits.items()}


def _cells_of_centres(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return nearest_entries(values, centres).astype(np.int64)


def _error_and_entropy(values: np.ndarray, weights: np.ndarray, cells: np.ndarray) -> tuple[float, float]:
    _, place, counts = np.unique(cells, return_inverse=True, return_counts=True)
    centres = np.bincount(place, weights * values) / np.bincount(place, weights)
    shares = counts / values.size
    return float(np.dot(weights, (values - centres[place]) ** 2)), float(-np.dot(shares, np.log2(shares)))
