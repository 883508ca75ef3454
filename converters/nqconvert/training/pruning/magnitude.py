"""Magnitude pruning: which weights stay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nqformat.errors import ConversionError

__all__ = ["apply_masks", "magnitude_masks"]

_SCOPES = ("layer", "global")


def magnitude_masks(
    weights: Mapping[str, np.ndarray],
    density: float,
    *,
    scope: str = "layer",
    per_layer: Mapping[str, float] | None = None,
) -> dict[str, np.ndarray]:
    """Keep the weights of largest magnitude.

    Exactly ``round(density * n)`` of n weights are kept, at least one if density is above zero. Of
    weights of equal magnitude at the threshold the first in C order (and in the order of `weights`)
    stay, so the masks are the same everywhere and a smaller density gives a subset of the weights.

    Parameters
    ----------
    weights : mapping of name to float ndarray
    density : float, 0 to 1
        Share of weights to keep; 1 keeps all, zeros included.
    scope : {"layer", "global"}
        Apply the density to each tensor, or to all together with one threshold.
    per_layer : mapping of name to float, optional
        Densities of single tensors; they are left out of a global threshold.

    Returns
    -------
    dict of str to ndarray of bool
        True where a weight stays; names and shapes of `weights`.

    Raises
    ------
    ValueError
        If a density or the scope is not allowed, or `per_layer` names no tensor of `weights`.
    ConversionError
        If a weight is NaN; names the tensor.

    Source : Han, Pool, Tran, Dally 2015, "Learning both Weights and Connections", section 3

    Examples
    --------
    >>> import numpy as np
    >>> magnitude_masks({"w": np.array([0.1, -3.0, 0.2, 2.0])}, 0.5)["w"].tolist()
    [False, True, False, True]
    """
    own = dict(per_layer or {})
    _check(weights, density, scope, own)
    masks: dict[str, np.ndarray] = {}
    pooled = [name for name in weights if name not in own] if scope == "global" else []
    for name, array in weights.items():
        if name not in pooled:
            masks[name] = _largest(np.abs(array.reshape(-1)), own.get(name, density)).reshape(array.shape)
    if pooled:
        masks |= _global_masks({name: weights[name] for name in pooled}, density)
    return {name: masks[name] for name in weights}


def apply_masks(weights: Mapping[str, np.ndarray], masks: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return `weights` with 0.0 (never -0.0) where a mask is False; tensors without a mask as they are.

    Raises
    ------
    ValueError
        If a mask names no tensor, is not boolean or has another shape.

    Examples
    --------
    >>> import numpy as np
    >>> apply_masks({"w": np.array([1.0, -2.0])}, {"w": np.array([True, False])})["w"].tolist()
    [1.0, 0.0]
    """
    for name, mask in masks.items():
        if name not in weights:
            raise ValueError(f"a mask names {name!r}, which is none of the weights")
        if mask.dtype != np.bool_:
            raise ValueError(f"mask of {name!r} is {mask.dtype.name}, not bool")
        if mask.shape != weights[name].shape:
            raise ValueError(f"mask of {name!r} has shape {mask.shape}, the weights {weights[name].shape}")
    return {
        name: np.where(masks[name], array, array.dtype.type(0)) if name in masks else array
        for name, array in weights.items()
    }


def _check(weights: Mapping[str, np.ndarray], density: float, scope: str, own: Mapping[str, float]) -> None:
    if scope not in _SCOPES:
        raise ValueError(f"scope must be one of {', '.join(_SCOPES)}, not {scope!r}")
    for name in own:
        if name not in weights:
            raise ValueError(f"per_layer names {name!r}, which is none of the weights: {', '.join(weights)}")
    for what, share in [("density", density), *own.items()]:
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"density must be 0 to 1, but {what} is {share}")
    for name, array in weights.items():
        if np.isnan(array).any():
            raise ConversionError(f"tensor {name!r} holds NaN and cannot be pruned by magnitude")


def _largest(magnitudes: np.ndarray, density: float) -> np.ndarray:
    """Return a mask of the largest of flat `magnitudes`; of equal ones the first."""
    n_kept = min(magnitudes.size, max(round(density * magnitudes.size), 1 if density > 0 else 0))
    if n_kept == 0:
        return np.zeros(magnitudes.size, dtype=bool)
    threshold = np.partition(magnitudes, magnitudes.size - n_kept)[magnitudes.size - n_kept]
    mask: np.ndarray = magnitudes > threshold
    at_threshold = np.flatnonzero(magnitudes == threshold)
    mask[at_threshold[: n_kept - int(np.count_nonzero(mask))]] = True
    return mask


def _global_masks(weights: Mapping[str, np.ndarray], density: float) -> dict[str, np.ndarray]:
    magnitudes = [np.abs(array.reshape(-1)) for array in weights.values()]
    widened = [part.astype(np.float32) if part.dtype.itemsize == 2 else part for part in magnitudes]
    flat = _largest(np.concatenate(widened), density)
    masks: dict[str, np.ndarray] = {}
    start = 0
    for name, array in weights.items():
        masks[name] = flat[start : start + array.size].reshape(array.shape)
        start += array.size
    return masks
