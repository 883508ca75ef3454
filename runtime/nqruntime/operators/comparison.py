"""Comparison, logic and selection."""

from __future__ import annotations

import numpy as np

from .registry import NodeContext, Run, operator


@operator("Equal", 7)
def equal(context: NodeContext) -> Run:
    """Return a == b."""
    return np.equal


@operator("Less", 7)
def less(context: NodeContext) -> Run:
    """Return a < b."""
    return np.less


@operator("LessOrEqual", 12)
def less_or_equal(context: NodeContext) -> Run:
    """Return a <= b."""
    return np.less_equal


@operator("Greater", 7)
def greater(context: NodeContext) -> Run:
    """Return a > b."""
    return np.greater


@operator("GreaterOrEqual", 12)
def greater_or_equal(context: NodeContext) -> Run:
    """Return a >= b."""
    return np.greater_equal


@operator("Not")
def logical_not(context: NodeContext) -> Run:
    """Negate booleans."""
    return np.logical_not


@operator("And", 7)
def logical_and(context: NodeContext) -> Run:
    """Return a and b."""
    return np.logical_and


@operator("Or", 7)
def logical_or(context: NodeContext) -> Run:
    """Return a or b."""
    return np.logical_or


@operator("Where", 9)
def where(context: NodeContext) -> Run:
    """Choose from two operands by a condition."""
    return np.where


@operator("ArgMax", 13)
def arg_max(context: NodeContext) -> Run:
    """Return the first place of the largest element along an axis."""
    axis, keep = context.integer("axis", 0), bool(context.integer("keepdims", 1))
    if context.integer("select_last_index", 0):
        raise context.refuse("ArgMax with select_last_index=1")
    return lambda x: np.argmax(x, axis=axis, keepdims=keep).astype(np.int64)
