"""Comparison, logic and selection."""

from __future__ import annotations

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
register_function("Where", 9, np.where)


@operator("ArgMax", 13)
def arg_max(context: NodeContext) -> Run:
    """Return the first place of the largest element along an axis."""
    axis, keep = context.integer("axis", 0), bool(context.integer("keepdims", 1))
    if context.integer("select_last_index", 0):
        raise context.refuse("ArgMax with select_last_index=1")
    return lambda x: np.argmax(x, axis=axis, keepdims=keep).astype(np.int64)
