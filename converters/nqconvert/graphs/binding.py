"""Bind the tensors of an exported graph to the model's own tensors by content, not by name.

Exporters rename weights and transpose matrices; equal bytes, as they are or transposed, show which
tensor of the model a graph tensor really is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import numpy as np

from nqformat.dtypes import storage_bits
from nqformat.tensor import ViewSource, ViewTensor

from .row_binding import bind_rows

_SMALLEST_TIED_BYTES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """Which stored tensor each graph tensor is.

    Attributes
    ----------
    tensors : dict of str to ndarray
        What the file stores, each content once.
    views : dict of str to ViewTensor
        Graph tensors that are transposes or made of rows of stored ones.
    renames : dict of str to str
        Names in the graph that become names of stored tensors with the same content.
    equal : dict of str to str
        Other names of the model for a stored content, with the name it is stored under.
    unused : tuple of str
        Names of the model's tensors that the graph does not need.
    changed : tuple of str
        Names that both sides have, with different content.
    """

    tensors: dict[str, np.ndarray]
    views: dict[str, ViewTensor] = field(default_factory=dict)
    renames: dict[str, str] = field(default_factory=dict)
    equal: dict[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


def content_key(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    """Return a key that is equal for arrays of the same dtype, shape and bits."""
    content = storage_bits(array).reshape(-1).view(np.uint8).data
    digest = hashlib.blake2b(content, digest_size=20).digest()
    return array.dtype.name, array.shape, digest


def transposed_view(name: str, array: np.ndarray) -> ViewTensor:
    """Describe the transpose of the two-dimensional tensor `array` stored as `name`."""
    n_rows, n_columns = array.shape
    source = ViewSource(name=name, start=0, stop=n_rows)
    return ViewTensor(sources=(source,), permutation=(1, 0), shape=(n_columns, n_rows))


def may_be_tied(array: np.ndarray) -> bool:
    """Tell whether a second copy of `array` costs more than a view; constant arrays never do."""
    if array.nbytes < _SMALLEST_TIED_BYTES:
        return False
    flat = array.reshape(-1)
    return bool((flat[1:] != flat[:-1]).any())


def equal_view(name: str, array: np.ndarray) -> ViewTensor:
    """Describe a tensor that equals `array`, stored as `name`."""
    source = ViewSource(name=name, start=0, stop=array.shape[0])
    return ViewTensor(sources=(source,), permutation=tuple(range(array.ndim)), shape=array.shape)


def bind_tensors(
    graph_tensors: Mapping[str, np.ndarray],
    model_tensors: Mapping[str, np.ndarray] | None = None,
    *,
    reserved: Set[str] = frozenset(),
) -> Binding:
    """Match graph tensors with the model's tensors, then with each other.

    Parameters
    ----------
    graph_tensors : mapping of str to ndarray
        Tensors that the graph reads, by their names in the graph.
    model_tensors : mapping of str to ndarray, optional
        Tensors by the names that the model's author knows.
    reserved : set of str
        Names that other values of the graph have; no tensor is renamed to one of them.
    """
    known = dict(model_tensors or {})
    tensors, renames, stored_as = _bind_as_is(graph_tensors, known, reserved)
    taken = set(reserved) | set(graph_tensors)
    views = _bind_transposed(tensors, known, stored_as, taken)
    views |= bind_rows(tensors, known, taken)
    stored_as |= {content_key(array): name for name, array in tensors.items() if name in known}
    changed = tuple(name for name in tensors if name in known and tensors[name] is not known[name])
    left = {name: stored_as.get(content_key(array)) for name, array in known.items() if name not in tensors}
    return Binding(
        tensors=tensors,
        views=views,
        renames=renames,
        equal={name: stored for name, stored in left.items() if stored is not None},
        unused=tuple(name for name, stored in left.items() if stored is None),
        changed=changed,
    )


def _bind_as_is(
    graph_tensors: Mapping[str, np.ndarray], known: Mapping[str, np.ndarray], reserved: Set[str]
) -> tuple[dict[str, np.ndarray], dict[str, str], dict[tuple[str, tuple[int, ...], bytes], str]]:
    """Give each distinct content one name; prefer the model's name for it."""
    names_of: dict[tuple[str, tuple[int, ...], bytes], list[str]] = {}
    for name, array in known.items():
        names_of.setdefault(content_key(array), []).append(name)
    tensors: dict[str, np.ndarray] = {}
    renames: dict[str, str] = {}
    stored_as: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    for name, array in graph_tensors.items():
        key = content_key(array)
        if key not in stored_as:
            candidates = names_of.get(key, [])
            free = [
                n for n in candidates if n not in reserved and n not in graph_tensors and n not in tensors
            ]
            keeps_name = not free or (name in candidates and free[0] != candidates[0])
            stored_as[key] = name if keeps_name else free[0]
            stored = stored_as[key]
            tensors[stored] = known[stored] if stored in candidates else array
        if stored_as[key] != name:
            renames[name] = stored_as[key]
    return tensors, renames, stored_as


def _bind_transposed(
    tensors: dict[str, np.ndarray],
    known: Mapping[str, np.ndarray],
    stored_as: dict[tuple[str, tuple[int, ...], bytes], str],
    taken: Set[str],
) -> dict[str, ViewTensor]:
    """Replace tensors that are transposes of known or stored ones by views; changes `tensors`."""
    known_names: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    for name, array in known.items():
        if _is_matrix(array):
            known_names.setdefault(content_key(array), name)
    stored = {name for name in tensors if name in known}
    views: dict[str, ViewTensor] = {}
    for name in [n for n, array in tensors.items() if n not in known and _is_matrix(array)]:
        key = content_key(np.ascontiguousarray(tensors[name].T))
        source = stored_as.get(key)
        if source not in stored:
            source = known_names.get(key)
        if source is None or (source in taken and source not in stored):
            stored.add(name)
            continue
        if source not in tensors:
            tensors[source] = known[source]
            stored_as[key] = source
            stored.add(source)
        views[name] = transposed_view(source, tensors[source])
        del tensors[name]
    return views


def _is_matrix(array: np.ndarray) -> bool:
    """Tell whether transposing the array gives another array."""
    return array.ndim == 2 and min(array.shape) > 1
