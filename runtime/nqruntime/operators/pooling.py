"""Pooling over spatial axes."""

from __future__ import annotations

from itertools import product

import numpy as np

from .extremes import lowest
from .registry import NodeContext, Run, operator
from .windows import WindowPlan, WindowRule, plan_windows, read_window_rule


def _pool_rule(context: NodeContext) -> WindowRule:
    kernel = context.integers("kernel_shape")
    if kernel is None:
        raise context.refuse("pooling without kernel_shape")
    return read_window_rule(context, kernel)


@operator("MaxPool")
def max_pool(context: NodeContext) -> Run:
    """Return the largest element of each window."""
    context.expect_outputs(1, "MaxPool with indices")
    rule = _pool_rule(context)

    def run(x: np.ndarray) -> np.ndarray:
        plan = plan_windows(rule, x.shape[2:])
        padded = plan.padded(context, x, lowest(x.dtype))
        out = np.full((*x.shape[:2], *plan.out_shape), lowest(x.dtype), dtype=x.dtype)
        for offsets in product(*map(range, rule.kernel)):
            np.maximum(out, plan.tap(padded, offsets), out=out)
        return out

    return run


@operator("AveragePool", 7)
def average_pool(context: NodeContext) -> Run:
    """Return the mean of each window, over its elements inside the input unless padding counts."""
    rule = _pool_rule(context)
    count_padding = bool(context.integer("count_include_pad", 0))

    def run(x: np.ndarray) -> np.ndarray:
        plan = plan_windows(rule, x.shape[2:])
        padded = plan.padded(context, x, 0)
        out = np.zeros((*x.shape[:2], *plan.out_shape), dtype=x.dtype)
        for offsets in product(*map(range, rule.kernel)):
            out += plan.tap(padded, offsets)
        out /= _window_counts(plan, x.shape[2:], count_padding).astype(x.dtype)
        return out

    return run


def _window_counts(plan: WindowPlan, in_shape: tuple[int, ...], count_padding: bool) -> np.ndarray:
    """Return how many elements of each window count."""
    counts = np.ones((), dtype=np.int64)
    for axis, size in enumerate(in_shape):
        rule = plan.rule
        starts = np.arange(plan.out_shape[axis]) * rule.strides[axis]
        places = starts[:, None] + np.arange(rule.kernel[axis]) * rule.dilations[axis]
        before, after = plan.before[axis], plan.after[axis]
        first, last = (0, size + before + after) if count_padding else (before, size + before)
        inside = ((places >= first) & (places < last)).sum(axis=1)
        counts = counts[..., None] * inside
    return np.maximum(counts, 1)


def _spatial_axes(x: np.ndarray) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@operator("GlobalAveragePool")
def global_average_pool(context: NodeContext) -> Run:
    """Return the mean of each channel."""
    return lambda x: x.mean(axis=_spatial_axes(x), keepdims=True)


@operator("GlobalMaxPool")
def global_max_pool(context: NodeContext) -> Run:
    """Return the largest element of each channel."""
    return lambda x: x.max(axis=_spatial_axes(x), keepdims=True)
