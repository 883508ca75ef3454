"""Operators that pick elements."""

from __future__ import annotations

import numpy as np

from nqruntime.matrices import CompactArray

from .registry import NodeContext, Prepared, Run, operator


@operator("Gather")
def gather(context: NodeContext) -> Run | Prepared:
    """Take slices by number along an axis; a constant table stays compressed."""
    axis = context.integer("axis", 0)
    table = context.constant(0)
    if table is None or table.packed() is None:
        return lambda x, indices: np.take(x, indices, axis=axis)
    compact = CompactArray(table)

    def run(_: None, indices: np.ndarray) -> np.ndarray:
        return compact.decoded(np.take(compact.stored, indices, axis=axis))

    return Prepared(run=run, kernel=f"gather, {compact.label}", weight_bytes=compact.weight_bytes, taken=(0,))


@operator("GatherElements", 11)
def gather_elements(context: NodeContext) -> Run:
    """Take one element along an axis for each index."""
    axis = context.integer("axis", 0)

    def run(x: np.ndarray, indices: np.ndarray) -> np.ndarray:
        places = list(np.ogrid[tuple(map(slice, indices.shape))])
        places[axis] = indices
        picked: np.ndarray = x[tuple(places)]
        return picked

    return run


@operator("CumSum", 11)
def cumulative_sum(context: NodeContext) -> Run:
    """Add up along an axis, in either direction, with or without the element itself."""
    exclusive, reverse = context.integer("exclusive", 0), context.integer("reverse", 0)

    def run(x: np.ndarray, axis: np.ndarray) -> np.ndarray:
        along = int(axis.reshape(()))
        ordered = np.flip(x, along) if reverse else x
        total = np.cumsum(ordered, axis=along, dtype=x.dtype)
        if exclusive:
            total = total - ordered
        return np.flip(total, along) if reverse else total

    return run


@operator("Slice", 10)
def slice_axes(context: NodeContext) -> Run:
    """Take ranges along axes, with steps that may be negative."""

    def run(
        x: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        axes: np.ndarray | None = None,
        steps: np.ndarray | None = None,
    ) -> np.ndarray:
        chosen = [slice(None)] * x.ndim
        along = range(starts.size) if axes is None else axes.tolist()
        strides = [1] * starts.size if steps is None else steps.tolist()
        for axis, start, end, step in zip(along, starts.tolist(), ends.tolist(), strides, strict=True):
            chosen[axis] = _axis_slice(start, end, step, x.shape[axis])
        return x[tuple(chosen)]

    return run


def _axis_slice(start: int, end: int, step: int, size: int) -> slice:
    """Return Python's slice for ONNX's bounds, which are clamped to the axis."""
    low, high = (0, size) if step > 0 else (-1, size - 1)
    first = min(max(start + size if start < 0 else start, 0), high)
    last = min(max(end + size if end < 0 else end, low), size)
    return slice(first, None if last < 0 else last, step)


@operator("Split", 2)
def split_by_attribute(context: NodeContext) -> Run:
    """Cut along an axis into parts of given, or equal, sizes."""
    axis, sizes = context.integer("axis", 0), context.integers("split")
    n_parts = len(context.node.outputs)
    return lambda x: _split(x, axis, list(sizes) if sizes else None, n_parts)


@operator("Split", 13)
def split(context: NodeContext) -> Run:
    """Cut along an axis into parts whose sizes the second input gives, or equal ones."""
    axis = context.integer("axis", 0)
    n_parts = context.integer("num_outputs", len(context.node.outputs))
    return lambda x, sizes=None: _split(x, axis, None if sizes is None else sizes.tolist(), n_parts)


def _split(x: np.ndarray, axis: int, sizes: list[int] | None, n_parts: int) -> tuple[np.ndarray, ...]:
    if sizes is None:
        width = -(-x.shape[axis] // n_parts)
        sizes = [min(width, max(0, x.shape[axis] - i * width)) for i in range(n_parts)]
    if sum(sizes) != x.shape[axis] or min(sizes, default=0) < 0:
        raise ValueError(f"parts of sizes {sizes} do not make up an axis of {x.shape[axis]}")
    return tuple(np.split(x, np.cumsum(sizes)[:-1].tolist(), axis=axis))
