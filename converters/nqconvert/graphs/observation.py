"""Values inside an ONNX graph, seen through ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .onnx_tensor import proto_of
from .ort_session import open_session, run_session

__all__ = ["observed_values"]

_MAX_MODEL_BYTES = (1 << 31) - 1

Feeds = Mapping[str, np.ndarray]


def observed_values(
    model: Any, arrays: Mapping[str, np.ndarray], wanted: Iterable[str]
) -> Callable[[Feeds], dict[str, np.ndarray]]:
    """Return a function from inputs to inputs, outputs and the wanted values by name.

    Parameters
    ----------
    model : onnx.ModelProto
        Without the tensors; changed.
    arrays : mapping of str to ndarray
        Its tensors.
    wanted : iterable of str
        Names of values in the graph.

    Raises
    ------
    ConversionError
        If the model and its tensors exceed what ONNX Runtime takes from memory.
    """
    onnx = require_package("onnx")
    if sum(array.nbytes for array in arrays.values()) + model.ByteSize() > _MAX_MODEL_BYTES:
        raise ConversionError("the model is too large to be observed: more than 2 GiB of weights")
    model.graph.initializer.extend(proto_of(name, array) for name, array in arrays.items())
    known = {value.name for value in (*model.graph.output, *model.graph.input)} | set(arrays)
    for name in _distinct(wanted):
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    session = open_session(model.SerializeToString())
    names = [value.name for value in session.get_outputs()]
    return lambda feeds: {**feeds, **dict(zip(names, run_session(session, feeds), strict=True))}


def _distinct(names: Iterable[str]) -> Iterator[str]:
    return iter(dict.fromkeys(names))
