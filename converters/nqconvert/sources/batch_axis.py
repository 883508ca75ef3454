"""Graphs that declare how many samples they take, opened for any number where that changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nqconvert.graphs.observation import observed_values
from nqconvert.graphs.ort_session import relative_difference
from nqconvert.graphs.views import graph_arrays
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .model_source import ModelSource

__all__ = ["declared_samples", "opened_source"]

_CLOSE = 1e-4
_OPEN = "nqz_samples"


def declared_samples(source: ModelSource) -> int | None:
    """Return the length of axis 0 that the graph declares for all its inputs; None if there is no such."""
    if source.graph is None or not source.input_names:
        return None
    model = require_package("onnx").ModelProto.FromString(source.graph)
    found = {_first_length(value) for value in model.graph.input if value.name in source.input_names}
    (length,) = found if len(found) == 1 else (None,)
    return length


def opened_source(source: ModelSource, feeds: Mapping[str, np.ndarray], n_samples: int) -> ModelSource | None:
    """Return the source with axis 0 of inputs and outputs open; None if its outputs are then others.

    A graph that was exported for one sample often takes several, but not if the number stands in a Reshape.

    Parameters
    ----------
    source : ModelSource
        With a graph that declares `n_samples`.
    feeds : mapping of str to ndarray
        Inputs of twice as many samples, which are run together and in two halves.
    n_samples : int

    Returns
    -------
    ModelSource or None
    """
    assert source.graph is not None
    opened = _opened(source)
    try:
        together = _runner(source, opened)(feeds)
        run = _runner(source, source.graph)
        halves = [
            run({name: value[part] for name, value in feeds.items()})
            for part in (slice(n_samples), slice(n_samples, None))
        ]
    except ConversionError:
        return None
    for name in source.output_names:
        whole = together[name]
        if whole.ndim == 0 or whole.shape[0] % 2:
            return None
        expected = np.concatenate([half[name] for half in halves])
        if relative_difference(expected, whole) > _CLOSE:
            return None
    return replace(source, graph=opened)


def _first_length(value: Any) -> int | None:
    """Return the declared length of axis 0 of an input."""
    dimensions = value.type.tensor_type.shape.dim
    return dimensions[0].dim_value or None if dimensions else None


def _opened(source: ModelSource) -> bytes:
    assert source.graph is not None
    model = require_package("onnx").ModelProto.FromString(source.graph)
    del model.graph.value_info[:]
    named = {*source.input_names, *source.output_names}
    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if value.name in named and dimensions:
            dimensions[0].dim_param = _OPEN
    content: bytes = model.SerializeToString()
    return content


def _runner(source: ModelSource, graph: bytes) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return a function that runs a graph with the tensors of the source."""
    model = require_package("onnx").ModelProto.FromString(graph)
    return observed_values(model, graph_arrays(source.tensors, source.views), ())
