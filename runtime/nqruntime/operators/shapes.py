"""Operators that move elements without computing."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from .registry import NodeContext, Run, operator


@operator("Flatten")
def flatten(context: NodeContext) -> Run:
    """Join the axes before `axis`, and those from it on."""
    axis = context.integer("axis", 1)

    def run(x: np.ndarray) -> np.ndarray:
        split = axis + x.ndim if axis < 0 else axis
        return x.reshape(math.prod(x.shape[:split]), math.prod(x.shape[split:]))

    return run


@operator("Reshape", 5)
def reshape(context: NodeContext) -> Run:
    """Give the elements another shape; 0 keeps a size unless `allowzero` is set, -1 takes the rest."""
    allow_zero = bool(context.integer("allowzero", 0))

    def run(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
        sizes = shape.tolist()
        if not allow_zero:
            sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
        return x.reshape(sizes)

    return run


@operator("Transpose")
def transpose(context: NodeContext) -> Run:
    """Permute the axes; by default in reverse."""
    permutation = context.integers("perm")
    return lambda x: x.transpose(permutation)


@operator("Concat", 4)
def concatenate(context: NodeContext) -> Run:
    """Join along an axis."""
    axis = context.integer("axis", 0)
    return lambda *arrays: np.concatenate(arrays, axis=axis)


@operator("Shape")
def shape_of(context: NodeContext) -> Run:
    """Return the sizes of axes `start` to `end`."""
    start = context.integer("start", 0)
    end = context.integer("end", 0) if "end" in context.node.attributes else None
    return lambda x: np.array(x.shape[start:end], dtype=np.int64)


@operator("Size")
def size_of(context: NodeContext) -> Run:
    """Return the number of elements."""
    return lambda x: np.array(x.size, dtype=np.int64)


@operator("Expand", 8)
def expand(context: NodeContext) -> Run:
    """Broadcast to a shape, which may itself broadcast."""

    def run(x: np.ndarray, shape: np.ndarray) -> np.ndarray:
        sizes = np.broadcast_shapes(x.shape, tuple(shape.tolist()))
        context.check_size(math.prod(sizes), x.itemsize)
        return np.broadcast_to(x, sizes)

    return run


@operator("Tile", 6)
def tile(context: NodeContext) -> Run:
    """Repeat along each axis."""

    def run(x: np.ndarray, repeats: np.ndarray) -> np.ndarray:
        context.check_size(x.size * math.prod(repeats.tolist()), x.itemsize)
        return np.tile(x, repeats.tolist())

    return run


@operator("Trilu", 14)
def triangle(context: NodeContext) -> Run:
    """Keep the upper or lower triangle of matrices."""
    keep = np.triu if context.integer("upper", 1) else np.tril
    return lambda x, k=None: keep(x, 0 if k is None else int(k.reshape(())))


def _squeeze(x: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """Drop axes of size 1."""
    return np.squeeze(x, axis=axes)


def _unsqueeze(x: np.ndarray, axes: tuple[int, ...] | None) -> np.ndarray:
    """Insert axes of size 1."""
    return np.expand_dims(x, axes or ())


def _register_with_axes(
    name: str, function: Callable[[np.ndarray, tuple[int, ...] | None], np.ndarray]
) -> None:
    """Register an operator whose axes are an attribute at first and an input from opset 13 on."""

    def prepare_by_attribute(context: NodeContext) -> Run:
        axes = context.integers("axes")
        return lambda x: function(x, axes)

    def prepare(context: NodeContext) -> Run:
        return lambda x, axes=None: function(x, None if axes is None else tuple(axes.reshape(-1).tolist()))

    operator(name, 1)(prepare_by_attribute)
    operator(name, 13)(prepare)


_register_with_axes("Squeeze", _squeeze)
_register_with_axes("Unsqueeze", _unsqueeze)
