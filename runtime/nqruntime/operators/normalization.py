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
    context.expect_outputs(1, "LayerNormalization with statistics as outputs")
    axis, epsilon = context.integer("axis", -1), context.number("epsilon", 1e-5)

    def run(x: np.ndarray, scale: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
        axes = tuple(range(axis % x.ndim, x.ndim))
        centred = x - x.mean(axis=axes, keepdims=True)
        variance = np.square(centred).mean(axis=axes, keepdims=True)
        normal: np.ndarray = centred / np.sqrt(variance + x.dtype.type(epsilon)) * scale
        return normal if bias is None else normal + bias

    return run
