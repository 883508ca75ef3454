"""Bring sensitivities of a module's parameters to the tensors that are stored: exported, folded, renamed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nqconvert.graphs.binding import content_key

__all__ = ["BoundSensitivities", "bind_sensitivities"]

_SCALE_TOLERANCE = 1e-3
_MAX_LOOKED_UP = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundSensitivities:
    """Sensitivities by stored tensor.

    Attributes
    ----------
    arrays : dict of str to ndarray of float32
        In the shapes of the stored tensors.
    rescaled : tuple of str
        Tensors that batch norm was folded into; theirs were divided by the squared scale of the channel.
    looked_up : tuple of str
        Tensors in an order of the exporter's own, matched value by value.
    missing : tuple of str
        Tensors that asked for sensitivities and got none.
    """

    arrays: dict[str, np.ndarray]
    rescaled: tuple[str, ...] = ()
    looked_up: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def bind_sensitivities(
    tensors: Mapping[str, np.ndarray],
    parameters: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray],
) -> BoundSensitivities:
    """Find the sensitivities of stored tensors.

    By name if the content is the same; by name with a factor for each channel, as folding a batch norm
    leaves it (``w' = s w`` gives ``h' = h / s^2``); by content as it is or transposed; else value by value,
    if all of a tensor's values are found among the parameters.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        Weights as they are stored.
    parameters, sensitivities : mapping of str to ndarray
        By the module's names, in the module's shapes.

    Examples
    --------
    >>> import numpy as np
    >>> w, h = np.float32([[1, 2], [3, 4]]), np.float32([[5, 6], [7, 8]])
    >>> bind_sensitivities({"val_0": w.T}, {"weight": w}, {"weight": h}).arrays["val_0"].tolist()
    [[5.0, 7.0], [6.0, 8.0]]
    """
    known = {name: parameters[name] for name in sensitivities if name in parameters}
    by_content = {content_key(np.ascontiguousarray(array)): name for name, array in known.items()}
    arrays: dict[str, np.ndarray] = {}
    rescaled, looked_up, missing = [], [], []
    table = None
    for name, array in tensors.items():
        source = by_content.get(content_key(np.ascontiguousarray(array)))
        if source is not None:
            arrays[name] = sensitivities[source]
            continue
        if array.ndim == 2:
            source = by_content.get(content_key(np.ascontiguousarray(array.T)))
            if source is not None:
                arrays[name] = np.ascontiguousarray(sensitivities[source].T)
                continue
        folded = _folded(array, known.get(name), sensitivities.get(name))
        if folded is not None:
            arrays[name] = folded
            rescaled.append(name)
            continue
        table = _value_table(known, sensitivities) if table is None else table
        found = _look_up(array, *table)
        if found is not None:
            arrays[name] = found
            looked_up.append(name)
        else:
            missing.append(name)
    return BoundSensitivities(
        arrays=arrays, rescaled=tuple(rescaled), looked_up=tuple(looked_up), missing=tuple(missing)
    )


def _folded(
    stored: np.ndarray, original: np.ndarray | None, sensitivity: np.ndarray | None
) -> np.ndarray | None:
    """Return sensitivities over the squared scale if one axis of `original` was scaled, else None."""
    if original is None or sensitivity is None or original.shape != stored.shape:
        return None
    before, after = original.astype(np.float64), stored.astype(np.float64)
    for axis in range(min(2, stored.ndim)):
        others = tuple(i for i in range(stored.ndim) if i != axis)
        energy = np.square(before).sum(axis=others, keepdims=True)
        scale = (before * after).sum(axis=others, keepdims=True) / np.where(energy > 0, energy, 1.0)
        if np.abs(after - scale * before).max() <= _SCALE_TOLERANCE * max(np.abs(after).max(), 1e-30):
            squared = np.square(scale)
            usable = squared > 0
            divided = sensitivity / np.where(usable, squared, 1.0)
            folded: np.ndarray = np.where(usable, divided, 0.0).astype(np.float32)
            return folded
    return None


def _value_table(
    known: Mapping[str, np.ndarray], sensitivities: Mapping[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return all parameter values ascending and their sensitivities; empty if they are too many."""
    if not known or sum(array.size for array in known.values()) > _MAX_LOOKED_UP:
        return np.empty(0, np.float32), np.empty(0, np.float32)
    values = np.concatenate([known[name].reshape(-1).astype(np.float32) for name in known])
    shares = np.concatenate([sensitivities[name].reshape(-1) for name in known])
    order = np.argsort(values, kind="stable")
    return values[order], shares[order]


def _look_up(array: np.ndarray, values: np.ndarray, shares: np.ndarray) -> np.ndarray | None:
    if values.size == 0 or array.dtype != np.float32:
        return None
    place = np.minimum(np.searchsorted(values, array.reshape(-1)), values.size - 1)
    if not np.array_equal(values[place], array.reshape(-1)):
        return None
    found: np.ndarray = shares[place].reshape(array.shape)
    return found
