"""Bring sensitivities of a module's parameters to the tensors that are stored: exported, folded, renamed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from nqconvert.graphs.binding import content_key

__all__ = ["BoundSensitivities", "Link", "bind_sensitivities", "find_links"]

_SCALE_TOLERANCE = 1e-3
_MAX_LOOKED_UP = 1 << 26


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """How a stored tensor comes from a parameter.

    Attributes
    ----------
    parameter : str
    transposed : bool
    scale : ndarray or None
        Factor of each channel that batch norm was folded with, in a shape that broadcasts.
    """

    parameter: str
    transposed: bool = False
    scale: np.ndarray | None = None


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


def find_links(tensors: Mapping[str, np.ndarray], parameters: Mapping[str, np.ndarray]) -> dict[str, Link]:
    """Find the parameter behind each stored tensor.

    By content, as it is or transposed; else by name, if the values differ by a factor for each channel, as
    folding a batch norm leaves them. Tensors of which neither holds are left out.
    """
    by_content: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    for name, array in parameters.items():
        by_content.setdefault(content_key(np.ascontiguousarray(array)), name)
    links: dict[str, Link] = {}
    for name, array in tensors.items():
        source = by_content.get(content_key(np.ascontiguousarray(array)))
        if source is not None:
            same = name in parameters and np.array_equal(parameters[name], array)
            links[name] = Link(parameter=name if same else source)
            continue
        turned = by_content.get(content_key(np.ascontiguousarray(array.T))) if array.ndim == 2 else None
        if turned is not None:
            links[name] = Link(parameter=turned, transposed=True)
        elif name in parameters:
            scale = _channel_scale(array, parameters[name])
            if scale is not None:
                links[name] = Link(parameter=name, scale=scale)
    return links


def bind_sensitivities(
    tensors: Mapping[str, np.ndarray],
    parameters: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray],
) -> BoundSensitivities:
    """Find the sensitivities of stored tensors.

    Through :func:`find_links` (``w' = s w`` gives ``h' = h / s^2``); else value by value, if all values of a
    tensor are found among the parameters.

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
    links = find_links(tensors, known)
    arrays = {name: _linked(sensitivities[link.parameter], link) for name, link in links.items()}
    found = _looked_up({n: a for n, a in tensors.items() if n not in links}, known, sensitivities)
    arrays |= found
    return BoundSensitivities(
        arrays=arrays,
        rescaled=tuple(name for name, link in links.items() if link.scale is not None),
        looked_up=tuple(found),
        missing=tuple(name for name in tensors if name not in arrays),
    )


def _linked(sensitivity: np.ndarray, link: Link) -> np.ndarray:
    if link.transposed:
        return np.ascontiguousarray(sensitivity.T)
    if link.scale is None:
        return sensitivity
    squared = np.square(link.scale)
    usable = squared > 0
    divided = sensitivity / np.where(usable, squared, 1.0)
    rescaled: np.ndarray = np.where(usable, divided, 0.0).astype(np.float32)
    return rescaled


def _channel_scale(stored: np.ndarray, original: np.ndarray) -> np.ndarray | None:
    """Return the factor of each channel if one axis of `original` was scaled, else None."""
    if original.shape != stored.shape:
        return None
    before, after = original.astype(np.float64), stored.astype(np.float64)
    for axis in range(min(2, stored.ndim)):
        others = tuple(i for i in range(stored.ndim) if i != axis)
        energy = np.square(before).sum(axis=others, keepdims=True)
        scale: np.ndarray = (before * after).sum(axis=others, keepdims=True) / np.where(energy > 0, energy, 1)
        if np.abs(after - scale * before).max() <= _SCALE_TOLERANCE * max(np.abs(after).max(), 1e-30):
            return scale
    return None


def _looked_up(
    tensors: Mapping[str, np.ndarray],
    known: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Match tensors in an order of the exporter's own value by value."""
    if not tensors or not known or _n_values(known.values()) > _MAX_LOOKED_UP:
        return {}
    values = np.concatenate([known[name].reshape(-1).astype(np.float32) for name in known])
    order = np.argsort(values, kind="stable")
    values = values[order]
    shares = np.concatenate([sensitivities[name].reshape(-1) for name in known])[order]
    found: dict[str, np.ndarray] = {}
    for name, array in tensors.items():
        flat = array.reshape(-1)
        place = np.minimum(np.searchsorted(values, flat), values.size - 1)
        if array.dtype == np.float32 and np.array_equal(values[place], flat):
            found[name] = shares[place].reshape(array.shape)
    return found


def _n_values(arrays: Iterable[np.ndarray]) -> int:
    return sum(array.size for array in arrays)
