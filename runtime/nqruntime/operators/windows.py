"""Where windows lie that slide over the spatial axes of a convolution or a pool."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nqformat.errors import CorruptError

from .registry import NodeContext

_MAX_STEP = 1 << 31


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowRule:
    """Attributes that place windows, one number for each spatial axis.

    Attributes
    ----------
    kernel, strides, dilations : tuple of int
    pads : tuple of int
        All beginnings, then all ends; ignored unless `auto_pad` is NOTSET.
    auto_pad : {"NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"}
    ceil_mode : bool
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    auto_pad: str = "NOTSET"
    ceil_mode: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """Windows over inputs of one spatial shape.

    Attributes
    ----------
    rule : WindowRule
    before, after : tuple of int
        Elements of padding at the beginning and end of each axis. With `ceil_mode`, windows may reach
        further; `beyond` adds what they need.
    beyond : tuple of int
    out_shape : tuple of int
    """

    rule: WindowRule
    before: tuple[int, ...]
    after: tuple[int, ...]
    beyond: tuple[int, ...]
    out_shape: tuple[int, ...]

    @property
    def is_padded(self) -> bool:
        """Whether any window reaches beyond the input."""
        return any(self.before) or any(self.after) or any(self.beyond)

    def padded(self, context: NodeContext, x: np.ndarray, value: float) -> np.ndarray:
        """Return `x` with padding on its spatial axes, which are all but the first two."""
        if not self.is_padded:
            return x
        in_shape = x.shape[2:]
        edges = zip(in_shape, self.before, self.after, self.beyond, strict=True)
        sizes = (*x.shape[:2], *(sum(edge) for edge in edges))
        context.check_size(math.prod(sizes), x.itemsize)
        out = np.full(sizes, value, dtype=x.dtype)
        inside = (slice(first, first + size) for first, size in zip(self.before, in_shape, strict=True))
        out[:, :, *inside] = x
        return out

    def tap(self, padded: np.ndarray, offsets: tuple[int, ...]) -> np.ndarray:
        """Return the element at `offsets` (in kernel steps) of every window, shape (..., *out_shape)."""
        slices: list[slice] = [slice(None), slice(None)]
        for axis, offset in enumerate(offsets):
            first = offset * self.rule.dilations[axis]
            stride = self.rule.strides[axis]
            slices.append(slice(first, first + (self.out_shape[axis] - 1) * stride + 1, stride))
        return padded[tuple(slices)]


def read_window_rule(context: NodeContext, kernel: tuple[int, ...]) -> WindowRule:
    """Read the attributes of a Conv or pooling node; CorruptError if they do not fit together."""
    n_axes = len(kernel)
    rule = WindowRule(
        kernel=kernel,
        strides=context.integers("strides") or (1,) * n_axes,
        dilations=context.integers("dilations") or (1,) * n_axes,
        pads=context.integers("pads") or (0,) * (2 * n_axes),
        auto_pad=context.text("auto_pad", "NOTSET"),
        ceil_mode=bool(context.integer("ceil_mode", 0)),
    )
    steps = rule.kernel + rule.strides + rule.dilations
    lengths_fit = len(rule.strides) == len(rule.dilations) == n_axes and len(rule.pads) == 2 * n_axes
    in_range = all(0 < step < _MAX_STEP for step in steps) and all(0 <= p < _MAX_STEP for p in rule.pads)
    known = rule.auto_pad in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    if not (lengths_fit and in_range and known and n_axes):
        raise CorruptError(f"{context.label} has impossible window attributes: {rule}", section="GRAPH")
    return rule


def plan_windows(rule: WindowRule, in_shape: tuple[int, ...]) -> WindowPlan:
    """Place windows over an input; ValueError if none fits."""
    if len(in_shape) != len(rule.kernel):
        raise ValueError(f"input of {len(in_shape)} spatial axes, kernel of {len(rule.kernel)}")
    axes = [_plan_axis(rule, axis, size) for axis, size in enumerate(in_shape)]
    before, after, beyond, out_shape = zip(*axes, strict=True)
    if min(out_shape) < 1:
        raise ValueError(f"windows of {rule.kernel} do not fit into an input of {in_shape}")
    return WindowPlan(rule=rule, before=before, after=after, beyond=beyond, out_shape=out_shape)


def _plan_axis(rule: WindowRule, axis: int, size: int) -> tuple[int, int, int, int]:
    """Return padding before, after, reach beyond it, and number of windows along one axis."""
    stride = rule.strides[axis]
    extent = (rule.kernel[axis] - 1) * rule.dilations[axis] + 1
    before, after = _axis_pads(rule, axis, size, extent)
    room = size + before + after - extent
    n_windows = (-(-room // stride) if rule.ceil_mode else room // stride) + 1
    if rule.ceil_mode and (n_windows - 1) * stride >= size + before:
        n_windows -= 1
    beyond = max(0, (n_windows - 1) * stride + extent - (size + before + after))
    return before, after, beyond, n_windows


def _axis_pads(rule: WindowRule, axis: int, size: int, extent: int) -> tuple[int, int]:
    if rule.auto_pad == "NOTSET":
        return rule.pads[axis], rule.pads[axis + len(rule.kernel)]
    if rule.auto_pad == "VALID":
        return 0, 0
    n_windows = -(-size // rule.strides[axis])
    total = max((n_windows - 1) * rule.strides[axis] + extent - size, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if rule.auto_pad == "SAME_UPPER" else (large, small)
