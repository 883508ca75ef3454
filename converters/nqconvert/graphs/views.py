"""What a graph reads: stored tensors, and views of them without a copy where that can be."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nqformat.tensor import ViewTensor

__all__ = ["graph_arrays"]


def graph_arrays(tensors: Mapping[str, np.ndarray], views: Mapping[str, ViewTensor]) -> dict[str, np.ndarray]:
    """Return stored tensors and the views of them by name; permutations share the memory of what they show.

    Examples
    --------
    >>> from nqformat.tensor import ViewSource
    >>> stored = np.float32([[1, 2, 3], [4, 5, 6]])
    >>> view = ViewTensor(sources=(ViewSource(name="w", start=0, stop=2),), permutation=(1, 0), shape=(3, 2))
    >>> shown = graph_arrays({"w": stored}, {"t": view})["t"]
    >>> shown.shape, np.shares_memory(shown, stored)
    ((3, 2), True)
    """
    return {**tensors, **{name: _shown(view, tensors) for name, view in views.items()}}


def _shown(view: ViewTensor, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    if len(view.sources) == 1:
        source = view.sources[0]
        shown = tensors[source.name][source.start : source.stop].transpose(view.permutation)
        if shown.shape == view.shape:
            return shown
    return view.assemble(tensors)
