"""Reductions along axes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .extremes import highest, lowest
from .registry import NodeContext, Run, operator

_Reduction = Callable[[np.ndarray, tuple[int, ...] | None, bool], np.ndarray]


def _mean(x: np.ndarray, axes: tuple[int, ...] | None, keep: bool) -> np.ndarray:
    mean: np.ndarray = np.mean(x, axis=axes, keepdims=keep)
    return mean.astype(x.dtype, copy=False)


def _sum(x: np.ndarray, axes: tuple[int, ...] | None, keep: bool) -> np.ndarray:
    total: np.ndarray = np.sum(x, axis=axes, keepdims=keep, dtype=x.dtype)
    return total


def _largest(x: np.ndarray, axes: tuple[int, ...] | None, keep: bool) -> np.ndarray:
    largest: np.ndarray = np.max(x, axis=axes, keepdims=keep, initial=lowest(x.dtype))
    return largest


def _smallest(x: np.ndarray, axes: tuple[int, ...] | None, keep: bool) -> np.ndarray:
    smallest: np.ndarray = np.min(x, axis=axes, keepdims=keep, initial=highest(x.dtype))
    return smallest


def _register(name: str, axes_as_input_since: int, reduction: _Reduction) -> None:
    """Register a reduction whose axes are an attribute at first and an input later."""

    def prepare_by_attribute(context: NodeContext) -> Run:
        axes, keep = context.integers("axes"), bool(context.integer("keepdims", 1))
        return lambda x: reduction(x, axes or None, keep)

    def prepare(context: NodeContext) -> Run:
        keep = bool(context.integer("keepdims", 1))
        nothing_without_axes = bool(context.integer("noop_with_empty_axes", 0))

        def run(x: np.ndarray, axes: np.ndarray | None = None) -> np.ndarray:
            along = () if axes is None else tuple(axes.reshape(-1).tolist())
            if not along and nothing_without_axes:
                return x
            return reduction(x, along or None, keep)

        return run

    operator(name, 1)(prepare_by_attribute)
    operator(name, axes_as_input_since)(prepare)


def _product(x: np.ndarray, axes: tuple[int, ...] | None, keep: bool) -> np.ndarray:
    product: np.ndarray = np.prod(x, axis=axes, keepdims=keep, dtype=x.dtype)
    return product


def _root_of_squares(x: np.ndarray, axes: tuple[int, ...] | None, keep: bool) -> np.ndarray:
    norm: np.ndarray = np.sqrt(_sum(np.square(x), axes, keep))
    return norm.astype(x.dtype, copy=False)


_register("ReduceMean", 18, _mean)
_register("ReduceProd", 18, _product)
_register("ReduceL1", 18, lambda x, axes, keep: _sum(np.abs(x), axes, keep))
_register("ReduceL2", 18, _root_of_squares)
_register("ReduceSumSquare", 18, lambda x, axes, keep: _sum(np.square(x), axes, keep))
_register("ReduceSum", 13, _sum)
_register("ReduceMax", 18, _largest)
_register("ReduceMin", 18, _smallest)
