"""Convolution as a product of the weight matrix with columns of image patches."""

from __future__ import annotations

import math
from itertools import product

import numpy as np

from nqruntime.constants import ArrayConstant, Constant
from nqruntime.matrices import CompactArray, Matrix, StorageOrder, build_matrix

from .registry import NodeContext, Prepared, Run, operator
from .windows import WindowPlan, WindowRule, plan_windows, read_window_rule

_PATCH_BYTES = 32 << 20


@operator("Conv")
def conv(context: NodeContext) -> Run | Prepared:
    """Convolve over any number of spatial axes; constant weights stay compressed."""
    weight = context.constant(1)
    if weight is None:
        return lambda x, w, bias=None: _prepare_conv(context, ArrayConstant(w)).run(x, None, bias)
    return _prepare_conv(context, weight)


def _prepare_conv(context: NodeContext, weight: Constant) -> Prepared:
    shape = weight.shape
    if len(shape) < 3 or 0 in shape:
        raise context.refuse(f"Conv with weights of shape {shape}")
    kernel = shape[2:]
    if context.integers("kernel_shape") not in (None, kernel):
        raise context.refuse(f"Conv whose kernel_shape differs from its weights of shape {shape}")
    rule = read_window_rule(context, kernel)
    groups = context.integer("group", 1)
    if groups < 1 or shape[0] % groups:
        raise context.refuse(f"Conv of {shape[0]} outputs in {groups} groups")
    if groups > 1:
        return _prepare_grouped(context, weight, rule, groups)
    matrix = build_matrix(weight, (shape[0], math.prod(shape[1:])), StorageOrder.ROWS, context.library)

    def run(x: np.ndarray, _: None, bias: np.ndarray | None = None) -> np.ndarray:
        _check_channels(x, shape[1])
        return _add_bias(_convolve(context, x, matrix, shape[0], plan_windows(rule, x.shape[2:])), bias)

    return Prepared(run=run, kernel=f"patches, {matrix.label}", weight_bytes=matrix.weight_bytes, taken=(1,))


def _check_channels(x: np.ndarray, n_channels: int) -> None:
    if x.ndim < 3 or x.shape[1] != n_channels:
        raise ValueError(f"weights of {n_channels} input channels do not take an input of shape {x.shape}")


def _add_bias(y: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    if bias is not None:
        y += bias.reshape(-1, *(1,) * (y.ndim - 2))
    return y


def _convolve(
    context: NodeContext, x: np.ndarray, matrix: Matrix, n_outputs: int, plan: WindowPlan
) -> np.ndarray:
    """Multiply the weights with the patches of a few images at a time."""
    n_places = math.prod(plan.out_shape)
    n_patch = x.shape[1] * math.prod(plan.rule.kernel)
    context.check_size(n_patch * n_places, x.itemsize)
    out = np.empty((x.shape[0], n_outputs, *plan.out_shape), dtype=x.dtype)
    n_together = max(1, _PATCH_BYTES // max(1, n_patch * n_places * x.itemsize))
    for first in range(0, x.shape[0], n_together):
        images = x[first : first + n_together]
        products = matrix.multiply(_patch_columns(context, images, plan).reshape(n_patch, -1))
        by_image = products.reshape(n_outputs, images.shape[0], *plan.out_shape)
        out[first : first + n_together] = by_image.swapaxes(0, 1)
    return out


def _patch_columns(context: NodeContext, images: np.ndarray, plan: WindowPlan) -> np.ndarray:
    """Return patches, shape (channels, taps of the kernel, images, *out_shape)."""
    padded = plan.padded(context, images, 0)
    n_images, n_channels = images.shape[:2]
    kernel = plan.rule.kernel
    shape = (n_channels, math.prod(kernel), n_images, *plan.out_shape)
    columns = np.empty(shape, dtype=images.dtype)
    for i, offsets in enumerate(product(*map(range, kernel))):
        columns[:, i] = plan.tap(padded, offsets).swapaxes(0, 1)
    return columns


def _prepare_grouped(context: NodeContext, weight: Constant, rule: WindowRule, groups: int) -> Prepared:
    compact = CompactArray(weight)
    n_channels = weight.shape[1]

    def run(x: np.ndarray, _: None, bias: np.ndarray | None = None) -> np.ndarray:
        _check_channels(x, n_channels * groups)
        plan = plan_windows(rule, x.shape[2:])
        convolve = _convolve_depthwise if n_channels == 1 else _convolve_groups
        return _add_bias(convolve(context, x, compact.decoded(), groups, plan), bias)

    label = "taps" if n_channels == 1 else "patches by group"
    return Prepared(
        run=run, kernel=f"{label}, {compact.label}", weight_bytes=compact.weight_bytes, taken=(1,)
    )


def _convolve_depthwise(
    context: NodeContext, x: np.ndarray, weight: np.ndarray, groups: int, plan: WindowPlan
) -> np.ndarray:
    """Add up the kernel's taps, each one factor for a whole channel."""
    padded = plan.padded(context, x, 0)
    repeats = weight.shape[0] // groups
    out = np.zeros((x.shape[0], weight.shape[0], *plan.out_shape), dtype=x.dtype)
    taps = weight.reshape(weight.shape[0], -1)
    for i, offsets in enumerate(product(*map(range, plan.rule.kernel))):
        tap = plan.tap(padded, offsets)
        factors = taps[:, i].reshape(-1, *(1,) * len(offsets))
        out += (tap if repeats == 1 else np.repeat(tap, repeats, axis=1)) * factors
    return out


def _convolve_groups(
    context: NodeContext, x: np.ndarray, weight: np.ndarray, groups: int, plan: WindowPlan
) -> np.ndarray:
    """Convolve each group of channels on its own, an image at a time."""
    n_outputs = weight.shape[0]
    by_group = weight.reshape(groups, n_outputs // groups, -1)
    out = np.empty((x.shape[0], n_outputs, *plan.out_shape), dtype=x.dtype)
    for i in range(x.shape[0]):
        columns = _patch_columns(context, x[i : i + 1], plan).reshape(groups, by_group.shape[2], -1)
        out[i] = (by_group @ columns).reshape(n_outputs, *plan.out_shape)
    return out
