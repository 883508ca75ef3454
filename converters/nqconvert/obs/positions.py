"""Single positions of a layer: the inputs that its rows meet there, and its outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from nqconvert.graphs.products import Product

__all__ = ["inputs_at", "n_positions", "outputs_at", "windows"]


def n_positions(product: Product, activation: np.ndarray) -> int:
    """Return at how many positions of an activation the weight's rows are applied."""
    if product.operator == "Conv":
        return math.prod(_grid(product, windows(activation, product)))
    axis = 1 if product.operator == "ConvTranspose" else product.feature_axis
    return activation.size // max(1, activation.shape[axis])


def inputs_at(product: Product, activation: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return what the rows of the weight's matrices meet at some positions.

    Parameters
    ----------
    activation : ndarray
    places : ndarray of int64, shape (n,)
        Below :func:`n_positions`; the samples run slowest.

    Returns
    -------
    ndarray of float32, shape (groups, inputs of a group, n)
    """
    if product.operator == "Conv":
        seen = windows(activation, product)
        sample, *rest = np.unravel_index(places, _grid(product, seen))
        picked = seen[(sample, slice(None), *rest)]
    else:
        picked = _rows(activation, 1 if product.operator == "ConvTranspose" else product.feature_axis)[places]
    flat = picked.reshape(len(places), product.n_groups, -1).astype(np.float32, copy=False)
    return np.ascontiguousarray(flat.transpose(1, 2, 0))


def outputs_at(product: Product, output: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return outputs at some positions, float32 of shape (groups, outputs of a group, n).

    Transposed convolutions have none: what a position gives is spread over several.
    """
    axis = 1 if product.operator == "Conv" else -1
    picked = _rows(output, axis)[places].astype(np.float32, copy=False)
    return np.ascontiguousarray(picked.reshape(len(places), product.n_groups, -1).transpose(1, 2, 0))


def _grid(product: Product, seen: np.ndarray) -> tuple[int, ...]:
    """Return samples and positions of a convolution."""
    n_axes = len(product.shape) - 2
    return (seen.shape[0], *seen.shape[2 : 2 + n_axes])


def _rows(value: np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(value, axis, -1).reshape(-1, value.shape[axis])


def windows(activation: np.ndarray, product: Product) -> np.ndarray:
    """Return what a convolution sees: (samples, channels, positions, kernel elements), axes kept apart."""
    kernel = product.shape[2:]
    n_axes = len(kernel)
    attributes = product.attributes
    strides = attributes.get("strides", [1] * n_axes)
    dilations = attributes.get("dilations", [1] * n_axes)
    reach = [(size - 1) * dilation + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    pads = _pads(attributes, activation.shape[2:], reach, strides)
    wide = np.pad(activation, [(0, 0), (0, 0), *pads])
    seen = sliding_window_view(wide, reach, axis=tuple(range(2, 2 + n_axes)))
    places = (slice(None), slice(None), *(slice(None, None, stride) for stride in strides))
    return seen[(*places, *(slice(None, None, dilation) for dilation in dilations))]


def _pads(
    attributes: Mapping[str, Any], sizes: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        given = attributes.get("pads", [0] * 2 * len(sizes))
        return [(given[axis], given[axis + len(sizes)]) for axis in range(len(sizes))]
    pads = []
    for size, extent, stride in zip(sizes, reach, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + extent - size, 0)
        small, large = total // 2, total - total // 2
        pads.append((small, large) if mode == "SAME_UPPER" else (large, small))
    return pads
