"""Normalization with stored or measured statistics."""

from __future__ import annotations

import numpy as np

from .registry import NodeContext, Run, operator


@operator("BatchNormalization", 7)
def batch_normalization(context: NodeContext) -> Run:
    """Normalize each channel with stored statistics."""
    context.expect_outputs(1, "BatchNormalization with statistics as outputs")
    if not context.integer("spatial", 1):
        raise context.refuse("BatchNormalization with spatial=0")
    if context.integer("training_mode", 0):
        raise context.refuse("BatchNormalization in training mode")
    epsilon = context.number("epsilon", 1e-5)

    def run(
        x: np.ndarray, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray
    ) -> np.ndarray:
        factor = scale / np.sqrt(variance + variance.dtype.type(epsilon))
        per_channel = (-1, *(1,) * (x.ndim - 2))
        result: np.ndarray = x * factor.reshape(per_channel) + (bias - mean * factor).reshape(per_channel)
        return result

    return run


@operator("LayerNormalization", 17)
def layer_normalization(context: NodeContext) -> Run:
    """Normalize over the axes from `axis` on."""
    axis, epsilon = context.integer("axis", -1), context.number("epsilon", 1e-5)
    alone = not any(context.node.outputs[1:])

    def run(
        x: np.ndarray, scale: np.ndarray, bias: np.ndarray | None = None
    ) -> np.ndarray | tuple[np.ndarray, ...]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        mean = x.mean(axis=axes, keepdims=True)
        centred = x - mean
        deviation = np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + x.dtype.type(epsilon))
        normal: np.ndarray = centred / deviation * scale
        normal = normal if bias is None else normal + bias
        return normal if alone else (normal, mean, 1 / deviation)

    return run


@operator("RMSNormalization", 23)
def rms_normalization(context: NodeContext) -> Run:
    """Divide by the root of the mean square over the axes from `axis` on."""
    axis, epsilon = context.integer("axis", -1), context.number("epsilon", 1e-5)

    def run(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        axes = tuple(range(axis % x.ndim, x.ndim))
        power = np.square(x).mean(axis=axes, keepdims=True)
        result: np.ndarray = x / np.sqrt(power + x.dtype.type(epsilon)) * scale
        return result

    return run


@operator("InstanceNormalization", 6)
def instance_normalization(context: NodeContext) -> Run:
    """Normalize each channel of each image with its own statistics."""
    epsilon = context.number("epsilon", 1e-5)
    return lambda x, scale, bias: _by_group(x, x.shape[1], epsilon, scale, bias)


@operator("GroupNormalization", 21)
def group_normalization(context: NodeContext) -> Run:
    """Normalize groups of channels of each image with their own statistics."""
    groups, epsilon = context.integer("num_groups", 1), context.number("epsilon", 1e-5)
    return lambda x, scale, bias: _by_group(x, groups, epsilon, scale, bias)


def _by_group(x: np.ndarray, groups: int, epsilon: float, scale: np.ndarray, bias: np.ndarray) -> np.ndarray:
    flat = x.reshape(x.shape[0], groups, -1)
    centred = flat - flat.mean(axis=2, keepdims=True)
    normal = centred / np.sqrt(np.square(centred).mean(axis=2, keepdims=True) + x.dtype.type(epsilon))
    per_channel = (-1, *(1,) * (x.ndim - 2))
    result: np.ndarray = normal.reshape(x.shape) * scale.reshape(per_channel) + bias.reshape(per_channel)
    return result
