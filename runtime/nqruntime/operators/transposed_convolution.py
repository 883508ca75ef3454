"""Transposed convolution: every input element spreads the kernel over the output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from nqformat.errors import CorruptError
from nqruntime.constants import ArrayConstant, Constant
from nqruntime.matrices import CompactArray

from .registry import NodeContext, Prepared, Run, operator
from .windows import WindowRule, read_window_rule


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placement:
    """Where the output lies in the sum of all spread kernels, along each spatial axis.

    Attributes
    ----------
    before : tuple of int
        Elements cut off at the beginning.
    out_shape : tuple of int
    whole_shape : tuple of int
        Room for all kernels; the output may reach beyond it.
    """

    before: tuple[int, ...]
    out_shape: tuple[int, ...]
    whole_shape: tuple[int, ...]


@operator("ConvTranspose")
def conv_transpose(context: NodeContext) -> Run | Prepared:
    """Transposed convolution over any number of spatial axes; constant weights stay compressed."""
    weight = context.constant(1)
    if weight is None:
        return lambda x, w, bias=None: _prepare(context, ArrayConstant(w)).run(x, None, bias)
    return _prepare(context, weight)


def _prepare(context: NodeContext, weight: Constant) -> Prepared:
    shape = weight.shape
    groups = context.integer("group", 1)
    if len(shape) < 3 or 0 in shape or groups < 1 or shape[0] % groups:
        raise context.refuse(f"ConvTranspose with weights of shape {shape} in {groups} groups")
    if context.integers("kernel_shape") not in (None, shape[2:]):
        raise context.refuse(f"ConvTranspose whose kernel_shape differs from its weights of shape {shape}")
    rule = read_window_rule(context, shape[2:])
    n_axes = len(rule.kernel)
    extra = context.integers("output_padding") or (0,) * n_axes
    wanted = context.integers("output_shape")
    if len(extra) != n_axes or min(extra) < 0 or (wanted is not None and len(wanted) < n_axes):
        raise CorruptError(f"{context.label} has impossible sizes of its output", section="GRAPH")
    compact = CompactArray(weight)

    def run(x: np.ndarray, _: None, bias: np.ndarray | None = None) -> np.ndarray:
        if x.ndim != n_axes + 2 or x.shape[1] != shape[0]:
            raise ValueError(f"weights of shape {shape} do not take an input of shape {x.shape}")
        placement = _place(rule, x.shape[2:], extra, None if wanted is None else wanted[-n_axes:])
        out = _spread(context, x, compact.decoded(), groups=groups, rule=rule, placement=placement)
        if bias is not None:
            out += bias.reshape(-1, *(1,) * n_axes)
        return out

    return Prepared(run=run, kernel=f"taps, {compact.label}", weight_bytes=compact.weight_bytes, taken=(1,))


def _place(
    rule: WindowRule, in_shape: tuple[int, ...], extra: tuple[int, ...], wanted: tuple[int, ...] | None
) -> _Placement:
    """Place the output; ValueError if nothing is left of it."""
    before, sizes, whole = [], [], []
    for axis, size in enumerate(in_shape):
        stride = rule.strides[axis]
        extent = (rule.kernel[axis] - 1) * rule.dilations[axis] + 1
        covered = (size - 1) * stride + extent
        if wanted is not None:
            total = covered + extra[axis] - wanted[axis]
            first = _first_pad(rule, total)
            length = wanted[axis]
        elif rule.auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            length = size * stride
            first = _first_pad(rule, covered + extra[axis] - length)
        else:
            pads = (0, 0) if rule.auto_pad == "VALID" else (rule.pads[axis], rule.pads[axis + len(in_shape)])
            first, length = pads[0], covered + extra[axis] - sum(pads)
        before.append(max(first, 0))
        sizes.append(length)
        whole.append(max(covered, max(first, 0) + length))
    if min(sizes) < 1:
        raise ValueError(f"nothing is left of an input of {in_shape}")
    return _Placement(before=tuple(before), out_shape=tuple(sizes), whole_shape=tuple(whole))


def _first_pad(rule: WindowRule, total: int) -> int:
    total = max(total, 0)
    return total // 2 if rule.auto_pad == "SAME_UPPER" else total - total // 2


def _spread(
    context: NodeContext,
    x: np.ndarray,
    weight: np.ndarray,
    *,
    groups: int,
    rule: WindowRule,
    placement: _Placement,
) -> np.ndarray:
    """Add up the kernels that all input elements spread, a tap at a time."""
    n_images, n_outputs = x.shape[0], weight.shape[1] * groups
    context.check_size(n_images * n_outputs * math.prod(placement.whole_shape), x.itemsize)
    whole = np.zeros((n_images, n_outputs, *placement.whole_shape), dtype=x.dtype)
    images = x.reshape(n_images, groups, x.shape[1] // groups, -1)
    taps = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    for i, offsets in enumerate(product(*map(range, rule.kernel))):
        own = taps[..., i].swapaxes(1, 2) @ images
        places = []
        for axis, offset in enumerate(offsets):
            first, stride = offset * rule.dilations[axis], rule.strides[axis]
            places.append(slice(first, first + (x.shape[axis + 2] - 1) * stride + 1, stride))
        whole[:, :, *places] += own.reshape(n_images, n_outputs, *x.shape[2:])
    kept = (slice(b, b + size) for b, size in zip(placement.before, placement.out_shape, strict=True))
    return np.ascontiguousarray(whole[:, :, *kept])
