"""Inputs to try a graph with."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

import numpy as np

from .element_types import STRING, element_type
from .graph import GraphValue

MOST_ELEMENTS = 1 << 25

_FIRST_SIZE, _OTHER_SIZES = 1, 16
_SEED = 0


def made_up_feeds(inputs: Sequence[GraphValue], given: Container[str]) -> dict[str, np.ndarray] | None:
    """Return arrays to try a graph with: noise, zeros for integers; None if an input has no known type.

    Axes without a size get 1 if they are the first (the batch), else 16. None also for inputs of more than
    `MOST_ELEMENTS`.

    Parameters
    ----------
    inputs : sequence of GraphValue
    given : container of str
        Names that need no array, since they have an initializer.
    """
    rng = np.random.default_rng(_SEED)
    feeds = {}
    for value in inputs:
        if value.name in given:
            continue
        element = element_type(value.element_number)
        if element is None or element.dtype is None or element.number == STRING or value.shape is None:
            return None
        shape = [
            size if isinstance(size, int) else (_OTHER_SIZES if axis else _FIRST_SIZE)
            for axis, size in enumerate(value.shape)
        ]
        if math.prod(shape) > MOST_ELEMENTS:
            return None
        dtype = element.dtype.storage_dtype
        if dtype.kind == "f":
            feeds[value.name] = rng.standard_normal(shape).astype(dtype)
        else:
            feeds[value.name] = np.zeros(shape, dtype=dtype)
    return feeds
