"""Layer Hessians from the inputs of layers alone, through ONNX Runtime: no gradients, no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from nqconvert.graphs.observation import observed_values
from nqconvert.graphs.products import Product

from .positions import windows
from .scratch import release
from .statistics import LayerHessians

__all__ = ["add_plain_moments", "normalise_outputs"]

_MAX_POSITIONS = 1 << 15


def add_plain_moments(
    layers: Sequence[LayerHessians],
    model: Any,
    tensors: Mapping[str, np.ndarray],
    batches: Iterable[Mapping[str, np.ndarray]],
    progress: Callable[[str], None],
) -> None:
    """Measure ``sum x x^T`` of every layer's inputs, in units of the square of the layer's output.

    The loss of a layer is then the squared error of its output as a share of the output, and all layers
    count alike; what an output does to the answer is not known. Of a batch with more than 32,768 positions
    only some are looked at, in equal distances.

    Parameters
    ----------
    layers : sequence of LayerHessians
        Without Hessians of single outputs. Sums are added to; finished at the end.
    model : onnx.ModelProto
        Without its tensors; changed.
    tensors : mapping of str to ndarray
    batches : iterable of mappings
        Inputs by name.
    progress : callable
    """
    products = [product for layer in layers for product in layer.products]
    observe = observed_values(model, tensors, [product.activation for product in products])
    done = 0
    for feeds in batches:
        values = observe(feeds)
        for layer in layers:
            for product in layer.products:
                _add_inputs(layer, _inputs(product, values[product.activation]))
        done += next(iter(feeds.values())).shape[0]
        progress(f"measuring second moments: {done} samples")
    for layer in layers:
        layer.scales += 1.0
        layer.finish(done)
        normalise_outputs(layer, tensors[layer.product.weight])


def _inputs(product: Product, activation: np.ndarray) -> np.ndarray:
    """Return (groups, inputs, positions) of some samples, in the scale of all."""
    wide = activation.astype(np.float32)
    if product.operator == "Conv":
        seen = windows(wide, product)
        n_axes = activation.ndim - 2
        n_positions = math.prod(seen.shape[2 : 2 + n_axes])
        distance = -(-seen.shape[0] * n_positions // _MAX_POSITIONS)
        some = seen[::distance]
        order = (1, *range(2 + n_axes, 2 + 2 * n_axes), 0, *range(2, 2 + n_axes))
        flat = some.transpose(order).reshape(product.n_groups, math.prod(product.shape[1:]), -1)
        return flat * np.float32((seen.shape[0] / some.shape[0]) ** 0.5)
    axis = 1 if product.operator == "ConvTranspose" else product.feature_axis
    flat = np.moveaxis(wide, axis, 0).reshape(
        product.n_groups, activation.shape[axis] // product.n_groups, -1
    )
    distance = -(-flat.shape[2] // _MAX_POSITIONS)
    some = flat[:, :, ::distance]
    return some * np.float32((flat.shape[2] / some.shape[2]) ** 0.5)


def _add_inputs(layer: LayerHessians, inputs: np.ndarray) -> None:
    assert layer.shared is not None
    if layer.n_free:
        inputs = np.concatenate([inputs, np.ones_like(inputs[:, :1])], axis=1)
    for group, hessians in enumerate(layer.shared):
        for block, hessian in zip(layer.blocks, hessians, strict=True):
            part = inputs[group, block.start : block.stop]
            hessian += part @ part.T
            release(hessian)


def normalise_outputs(layer: LayerHessians, weight: np.ndarray) -> None:
    """Divide by half the output's square, so that half the curvature counts relative errors."""
    assert layer.shared is not None
    matrices = layer.product.matrices(weight.astype(np.float64))
    energy = 0.0
    for group, hessians in enumerate(layer.shared):
        for block, hessian in zip(layer.blocks, hessians, strict=True):
            n = block.stop - block.start - block.n_free
            part = matrices[group][:, block.start : block.start + n]
            energy += float(((part @ hessian[:n, :n]) * part).sum())
    for hessians in layer.shared:
        for hessian in hessians:
            hessian *= 2.0 / energy if energy > 0 else 1.0
            release(hessian)
