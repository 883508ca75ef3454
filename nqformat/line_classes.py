"""Classes of lines: rows (or columns) whose density and values are alike share code tables (spec 7.5)."""

from __future__ import annotations

import numpy as np

_ROUNDS = 8
_WIDEST_VALUES = 64
_VALUE_BINS = 32
_AT_ONCE = 1 << 16
_MOST_AT_ONCE = 1 << 18


def value_edges(numbers: np.ndarray, width: int) -> np.ndarray | None:
    """Bounds of 32 classes of numbers equally frequent; None for an alphabet that needs no classes."""
    if width <= _WIDEST_VALUES:
        return None
    order = np.sort(numbers)
    edges: np.ndarray = order[np.arange(1, _VALUE_BINS) * order.size // _VALUE_BINS]
    return edges


def value_counts(
    where: np.ndarray | None,
    n_places: int,
    numbers: np.ndarray,
    n_lines: int,
    *,
    width: int,
    edges: np.ndarray | None,
) -> np.ndarray:
    """Count how often each line holds each number, or each class of numbers between `edges`.

    Parameters
    ----------
    where : ndarray of integers, shape (n_numbers,), or None
        Position of each number in lines of `n_places`; None: every position has one.
    numbers : ndarray of integers below `width`
    edges : ndarray or None
        What :func:`value_edges` gives.

    Returns
    -------
    ndarray of float64, shape (n_lines, at most 64)
    """
    table = None
    n_bins = width if edges is None else _VALUE_BINS
    if edges is not None and width <= numbers.size:
        table = np.searchsorted(edges, np.arange(width), side="right")
    flat = np.zeros(n_lines * n_bins, dtype=np.int64)
    at_once = min(max(_AT_ONCE, flat.size), _MOST_AT_ONCE)
    for start in range(0, numbers.size, at_once):
        part = numbers[start : start + at_once].astype(np.int64)
        places = np.arange(start, start + part.size) if where is None else where[start : start + at_once]
        if table is not None:
            part = table[part]
        elif edges is not None:
            part = np.searchsorted(edges, part, side="right")
        part += places // n_places * n_bins
        flat += np.bincount(part, minlength=flat.size)
    return flat.reshape(n_lines, n_bins).astype(np.float64)


def classify_lines(
    n_stored: np.ndarray, n_places: int, values: np.ndarray | None, n_classes: int, *, dense: bool
) -> np.ndarray:
    """Assign each line to the class that codes it in the fewest bits.

    Parameters
    ----------
    n_stored : ndarray of int64, shape (n_lines,)
        Stored elements of each line, none beyond `n_places`.
    values : ndarray of float64, shape (n_lines, width), or None
        Numbers of each line.
    n_classes : int
    dense : bool
        Every element has a number, so that only `values` count.

    Returns
    -------
    ndarray of uint8, shape (n_lines,)
        Classes that stay empty are left out; classes ascend with density.

    Notes
    -----
    Alternates between the class models (a density and a distribution of values, with half a count added) and
    the assignment of lines, as k-means does; starts from equal shares of the stored elements by density.
    """
    key = n_stored.astype(np.float64)
    if dense and values is not None:
        key = values.astype(np.float64) @ np.arange(values.shape[1]) / np.maximum(values.sum(axis=1), 1.0)
    order = np.argsort(key, kind="stable")
    weights = np.cumsum(np.ones(key.size) if dense else np.sqrt(key[order]))
    classes = np.empty(key.size, dtype=np.int64)
    shares = weights / max(weights[-1], 1e-9) if weights.size else weights
    classes[order] = np.minimum((shares * n_classes * 0.999999).astype(np.int64), n_classes - 1)
    for _ in range(_ROUNDS):
        bits = _line_bits(n_stored, n_places, values, classes, n_classes=n_classes, dense=dense)
        changed = bits.argmin(axis=1)
        if np.array_equal(changed, classes):
            break
        classes = changed
    return _renumbered(classes, key)


def model_bytes(
    n_stored: np.ndarray, n_places: int, values: np.ndarray | None, classes: np.ndarray, *, dense: bool
) -> float:
    """Bytes of all lines, each under the density and the value distribution of its class.

    Parameters are those of :func:`classify_lines`; `classes` is what it returns, or zeros for one class.
    """
    n_classes = int(classes.max()) + 1
    bits = _line_bits(n_stored, n_places, values, classes, n_classes=n_classes, dense=dense)
    return float(bits[np.arange(classes.size), classes].sum()) / 8


def _line_bits(
    n_stored: np.ndarray,
    n_places: int,
    values: np.ndarray | None,
    classes: np.ndarray,
    *,
    n_classes: int,
    dense: bool,
) -> np.ndarray:
    """Bits of each line under the model of each class: shape (n_lines, n_classes)."""
    members = np.bincount(classes, minlength=n_classes).astype(np.float64)
    bits = np.where(members > 0, -np.log2(np.maximum(members, 1.0) / classes.size), np.inf)[None, :]
    bits = np.repeat(bits, classes.size, axis=0)
    if not dense:
        inside = np.bincount(classes, weights=n_stored, minlength=n_classes)
        density = np.clip((inside + 0.5) / (members * n_places + 1.0), 1e-9, 1 - 1e-9)
        bits -= n_stored[:, None] * np.log2(density) + (n_places - n_stored)[:, None] * np.log2(1 - density)
    if values is not None:
        model = np.stack([values[classes == c].sum(axis=0) for c in range(n_classes)]) + 0.5
        bits -= values @ np.log2(model / model.sum(axis=1, keepdims=True)).T
    return bits


def _renumbered(classes: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Renumber the classes in use by their mean key."""
    used = np.unique(classes)
    means = [key[classes == c].mean() for c in used]
    numbers = np.zeros(int(used.max()) + 1 if used.size else 1, dtype=np.uint8)
    for rank, place in enumerate(np.argsort(means, kind="stable")):
        numbers[used[place]] = rank
    renumbered: np.ndarray = numbers[classes]
    return renumbered
