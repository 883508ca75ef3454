"""Comparison, logic and selection."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .registry import NodeContext, Run, operator, register_function

register_function("Equal", 7, np.equal)
register_function("Less", 7, np.less)
register_function("LessOrEqual", 12, np.less_equal)
register_function("Greater", 7, np.greater)
register_function("GreaterOrEqual", 12, np.greater_equal)
register_function("Not", 1, np.logical_not)
register_function("And", 7, np.logical_and)
register_function("Or", 7, np.logical_or)
register_function("Xor", 7, np.logical_xor)
register_function("Where", 9, np.where)


def _register_place(name: str, find: Callable[..., np.ndarray]) -> None:
    """Register an operator that returns the place of an extreme along an axis."""

    def prepare(context: NodeContext) -> Run:
        axis, keep = context.integer("axis", 0), bool(context.integer("keepdims", 1))
        if not context.integer("select_last_index", 0):
            return lambda x: find(x, axis=axis, keepdims=keep).astype(np.int64)

        def last(x: np.ndarray) -> np.ndarray:
            places: np.ndarray = x.shape[axis] - 1 - find(np.flip(x, axis), axis=axis, keepdims=keep)
            return places.astype(np.int64)

        return last

    operator(name, 11)(prepare)


_register_place("ArgMax", np.argmax)
_register_place("ArgMin", np.argmin)
