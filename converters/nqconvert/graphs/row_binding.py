"""Bind tensors that an exporter made of rows of the model's tensors: slices, concatenations, reordered gates.

PyTorch keeps the gates of an LSTM in the order input, forget, cell, output; ONNX wants input, output,
forget, cell, both directions and both biases in one tensor each. Projections of attention are cut out of
one matrix and transposed. Equal rows show where each part comes from, whatever the exporter did.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import numpy as np

from nqformat.dtypes import storage_bits
from nqformat.tensor import ViewSource, ViewTensor

__all__ = ["bind_rows"]

_SMALLEST_BYTES = 128
_MOST_PARTS = 64
_MOST_CANDIDATES = 4
_MOST_ROWS = 1 << 20

_Rows = tuple[str, tuple[int, ...]]


@dataclass(slots=True)
class _Index:
    """Where rows of one type and shape stand in the model's tensors."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    places: dict[bytes, list[tuple[str, int]]] = field(default_factory=dict)

    def add(self, name: str, rows: np.ndarray) -> None:
        """Add the rows of a tensor, shape (n_rows, bytes)."""
        self.arrays[name] = rows
        for number, row in enumerate(rows):
            places = self.places.setdefault(row.tobytes(), [])
            if len(places) < _MOST_CANDIDATES:
                places.append((name, number))

    def parts(self, rows: np.ndarray) -> tuple[ViewSource, ...] | None:
        """Return runs of rows that together are `rows`, or None if some row is unknown or runs are many."""
        found: list[ViewSource] = []
        start = 0
        while start < len(rows):
            runs = [
                (_common_rows(rows[start:], self.arrays[name][first:]), name, first)
                for name, first in self.places.get(rows[start].tobytes(), ())
            ]
            if not runs or len(found) == _MOST_PARTS:
                return None
            length, name, first = max(runs, key=lambda run: run[0])
            found.append(ViewSource(name=name, start=first, stop=first + length))
            start += length
        return tuple(found)


def bind_rows(
    tensors: dict[str, np.ndarray], known: Mapping[str, np.ndarray], taken: Set[str]
) -> dict[str, ViewTensor]:
    """Replace tensors made of rows of the model's tensors by views of these.

    A tensor of the model that the graph does not read otherwise is stored only if views take all of it.

    Parameters
    ----------
    tensors : dict of str to ndarray
        What the file is going to store; changed: sources are added, bound tensors removed.
    known : mapping of str to ndarray
        The model's own tensors.
    taken : set of str
        Names that mean something else in the graph.

    Examples
    --------
    >>> model = {"gates": np.arange(80, dtype=np.float32).reshape(8, 10)}
    >>> graph = {"val_1": np.concatenate([model["gates"][4:], model["gates"][:4]])}
    >>> views = bind_rows(graph, model, set())
    >>> [(part.start, part.stop) for part in views["val_1"].sources], list(graph)
    ([(4, 8), (0, 4)], ['gates'])
    """
    sources = {
        name: array
        for name, array in known.items()
        if tensors.get(name) is array or (name not in tensors and name not in taken)
    }
    unbound = [name for name, array in tensors.items() if name not in known and _is_worthwhile(array)]
    indexes = _indexes(sources, {tensors[name].dtype.name for name in unbound}) if unbound else {}
    found = {name: view for name in unbound if (view := _view_of(tensors[name], indexes)) is not None}
    views = _affordable(found, sources, tensors)
    for name, view in views.items():
        del tensors[name]
        tensors.update((source.name, known[source.name]) for source in view.sources)
    return views


def _affordable(
    found: Mapping[str, ViewTensor], sources: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]
) -> dict[str, ViewTensor]:
    """Drop views of tensors that would be stored for a part of them only."""
    views = dict(found)
    while True:
        n_taken: dict[str, int] = {}
        for view in views.values():
            for part in view.sources:
                n_taken[part.name] = n_taken.get(part.name, 0) + part.stop - part.start
        partial = {
            name for name, rows in n_taken.items() if name not in tensors and rows < sources[name].shape[0]
        }
        kept = {n: v for n, v in views.items() if not any(part.name in partial for part in v.sources)}
        if len(kept) == len(views):
            return views
        views = kept


def _view_of(array: np.ndarray, indexes: Mapping[_Rows, _Index]) -> ViewTensor | None:
    """Return a tensor as a view, as it is or as the transpose of a matrix, or None."""
    for (dtype, shape), index in indexes.items():
        if dtype != array.dtype.name:
            continue
        if array.shape[array.ndim - len(shape) :] == shape and (parts := index.parts(_rows(array, shape))):
            return ViewTensor(sources=parts, permutation=tuple(range(len(shape) + 1)), shape=array.shape)
        turned = array.T if array.ndim == 2 else None
        if turned is not None and turned.shape[1:] == shape and (parts := index.parts(_rows(turned, shape))):
            return ViewTensor(sources=parts, permutation=(1, 0), shape=array.shape)
    return None


def _indexes(sources: Mapping[str, np.ndarray], dtypes: Set[str]) -> dict[_Rows, _Index]:
    """Index the rows of all tensors of some types, those with the longest rows first."""
    groups: dict[_Rows, _Index] = {}
    ordered = sorted(
        sources.items(), key=lambda item: -item[1].nbytes // max(1, item[1].shape[0] if item[1].ndim else 1)
    )
    for name, array in ordered:
        if array.dtype.name in dtypes and array.ndim and 0 < array.shape[0] <= _MOST_ROWS and array.size:
            key = (array.dtype.name, array.shape[1:])
            groups.setdefault(key, _Index()).add(name, _rows(array, array.shape[1:]))
    return groups


def _rows(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the bytes of rows of some shape: uint8, shape (n_rows, bytes of a row)."""
    bits = storage_bits(array).reshape(-1, *shape)
    return bits.reshape(len(bits), -1).view(np.uint8)


def _common_rows(rows: np.ndarray, others: np.ndarray) -> int:
    """Return how many rows two arrays have in common from the first on."""
    n_rows = min(len(rows), len(others))
    differing = np.flatnonzero((rows[:n_rows] != others[:n_rows]).any(axis=1))
    return int(differing[0]) if differing.size else n_rows


def _is_worthwhile(array: np.ndarray) -> bool:
    return bool(array.ndim and array.nbytes >= _SMALLEST_BYTES)
