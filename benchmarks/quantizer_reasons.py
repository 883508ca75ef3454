"""Why quantizers rank as they do: entropy at equal weighted error, with sensitivities changed on purpose.

No network runs here, so no accuracy is luck: if a method saves bytes in this table but not in files at equal
loss, the sensitivities are to blame; if it does not even here, the values are. What the files say is in
quantizer_trials.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nqconvert.kernels import nearest_entries
from nqconvert.quantizers.clustering import cluster_1d

_CLUSTERS = (4, 5, 6, 8, 11, 16, 23, 32, 45, 64)
_STEPS = np.geomspace(0.15, 2.0, 14)
_ERRORS = 0.003, 0.06
"""Shares of the energy between which methods are compared, as far as all of them reach."""


def reasons(weights: Mapping[str, np.ndarray], sensitivities: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Mean ratio of entropy to that of plain k-means, by what was done to the sensitivities.

    Values of all layers in one pool, pruned zeros left out; entries are weighted means of their cells.
    """
    parts = [(weights[name].reshape(-1), array.reshape(-1)) for name, array in sensitivities.items()]
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
    scale = float(np.sqrt(np.mean(values**2)))
    unweighted = {
        "kmeans": [_cells_of_centres(values, cluster_1d(values, k=k)) for k in _CLUSTERS],
        "uniform": [_cells_of_steps(values, step * scale) for step in _STEPS],
    }
    return {name: _ratios(values, make(), unweighted) for name, make in variants.items()}


def layer_scales(
    weights: Mapping[str, np.ndarray], sensitivities: Mapping[str, np.ndarray]
) -> dict[str, dict[str, float]]:
    """Weights that are not pruned, their root mean square and mean sensitivity, by layer."""
    found = {}
    for name, array in sensitivities.items():
        values = weights[name]
        kept = values != 0
        found[name] = {
            "n": int(kept.sum()),
            "rms": float(np.sqrt(np.mean(np.square(values[kept], dtype=np.float64)))),
            "sensitivity": float(array[kept].mean(dtype=np.float64)),
        }
    return found


def _ratios(
    values: np.ndarray, weights: np.ndarray, unweighted: dict[str, list[np.ndarray]]
) -> dict[str, float]:
    energy = float(np.dot(weights, values**2))
    weighted = [_cells_of_centres(values, cluster_1d(values, weights, k=k)) for k in _CLUSTERS]
    curves = {}
    for name, partitions in {**unweighted, "hessian-kmeans": weighted}.items():
        points = sorted(_error_and_entropy(values, weights, cells) for cells in partitions)
        curves[name] = np.array(points).T
    low = max(_ERRORS[0] * energy, *(errors[0] for errors, _ in curves.values()))
    high = min(_ERRORS[1] * energy, *(errors[-1] for errors, _ in curves.values()))
    levels = np.log(np.geomspace(low, high, 8))
    bits = {name: np.interp(levels, np.log(errors), found) for name, (errors, found) in curves.items()}
    return {name: float(np.mean(found / bits["kmeans"])) for name, found in bits.items()}


def _cells_of_steps(values: np.ndarray, step: float) -> np.ndarray:
    cells = np.rint(values / step).astype(np.int64)
    return cells - cells.min()


def _cells_of_centres(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return nearest_entries(values, centres).astype(np.int64)


def _error_and_entropy(values: np.ndarray, weights: np.ndarray, cells: np.ndarray) -> tuple[float, float]:
    counts = np.bincount(cells)
    used = counts > 0
    mass, moment = np.bincount(cells, weights), np.bincount(cells, weights * values)
    centres = np.divide(moment, mass, out=np.zeros(counts.size), where=mass > 0)
    shares = counts[used] / values.size
    error = float(np.dot(weights, np.square(values - centres[cells])))
    return error, float(-np.dot(shares, np.log2(shares)))
