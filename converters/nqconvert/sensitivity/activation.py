"""Mean squared inputs of matrix products, through ONNX Runtime alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from nqconvert.graphs.observation import observed_values
from nqconvert.graphs.products import Product, find_products
from nqconvert.graphs.views import graph_arrays
from nqconvert.sources.model_source import ModelSource
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .calibration import calibration_batches, feeds_of
from .settings import SensitivitySettings

__all__ = ["measure_activation"]


def measure_activation(
    source: ModelSource, calibration: Any, settings: SensitivitySettings
) -> dict[str, np.ndarray]:
    """Sum the squares of every product's inputs (method ``activation``); needs no gradient and no torch.

    The weight that meets feature j of a Gemm, MatMul, Conv or ConvTranspose gets ``sum x_j^2`` over
    positions, a mean over samples: the second derivative of half the squared error of the product's
    output. All output rows are alike. A convolution's input channels are told apart, not its kernel
    positions. Weights of other operators, and products inside If, Loop and Scan, get none.

    Parameters
    ----------
    source : ModelSource
        With a graph.
    calibration : object
        See :func:`nqconvert.sensitivity.calibration.calibration_batches`; targets are not used.
    settings : SensitivitySettings

    Returns
    -------
    dict of str to ndarray of float32
        By the source's tensor names.

    Raises
    ------
    ConversionError
        If there is no graph, or it and its tensors exceed what ONNX Runtime takes from memory.
    """
    if source.graph is None:
        raise ConversionError("the sensitivity 'activation' needs a graph; a state dict has none")
    arrays = graph_arrays(source.tensors, source.views)
    model = require_package("onnx").ModelProto.FromString(source.graph)
    products = list(find_products(model.graph, {name: array.shape for name, array in arrays.items()}))
    observe = observed_values(model, arrays, [product.activation for product in products])
    sums: dict[str, np.ndarray] = {}
    done = 0
    for batch in calibration_batches(calibration, batch_size=settings.batch_size, samples=settings.samples):
        values = observe(feeds_of(batch, source.input_names))
        for product in products:
            share = _feature_squares(values[product.activation], product)
            held = sums.get(_key(product))
            sums[_key(product)] = share if held is None else held + share
        done += batch.n_samples
        settings.progress(f"sensitivity: {done} of at most {settings.samples} samples")
    return _by_stored_tensor(source, arrays, products, sums, done)


def _key(product: Product) -> str:
    return f"{product.weight}\n{product.activation}\n{product.weight_axis}"


def _feature_squares(activation: np.ndarray, product: Product) -> np.ndarray:
    """Return the sum of squares of each feature."""
    if activation.ndim < 2:
        return np.square(activation.astype(np.float64)).reshape(-1)
    wide = np.moveaxis(activation, product.feature_axis, -1).reshape(
        -1, activation.shape[product.feature_axis]
    )
    squares: np.ndarray = np.einsum("ij,ij->j", wide, wide, dtype=np.float64, casting="unsafe")
    return squares * product.positions_share


def _by_stored_tensor(
    source: ModelSource,
    arrays: dict[str, np.ndarray],
    products: list[Product],
    sums: dict[str, np.ndarray],
    n_samples: int,
) -> dict[str, np.ndarray]:
    """Spread each feature's sum over the weights that meet it; a tensor that is used twice adds up."""
    result: dict[str, np.ndarray] = {}
    for key, product in {_key(product): product for product in products}.items():
        weight = arrays[product.weight]
        spread = _spread(sums[key] / n_samples, weight, product)
        if spread is None:
            continue
        name, array = product.weight, spread
        view = source.views.get(name)
        if view is not None:
            stored = source.tensors[view.sources[0].name]
            if len(view.sources) > 1 or stored.shape != tuple(np.array(spread.shape)[list(view.permutation)]):
                continue
            name, array = view.sources[0].name, np.transpose(spread, np.argsort(view.permutation))
        total = np.ascontiguousarray(array, dtype=np.float32)
        result[name] = result[name] + total if name in result else total
    return result


def _spread(features: np.ndarray, weight: np.ndarray, product: Product) -> np.ndarray | None:
    axis = product.weight_axis % weight.ndim
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    if product.n_groups == 1 or product.operator == "ConvTranspose":
        if features.size != weight.shape[axis]:
            return None
        return np.broadcast_to(features.reshape(shape), weight.shape)
    n_out = weight.shape[0]
    if features.size != weight.shape[1] * product.n_groups or n_out % product.n_groups:
        return None
    grouped = np.repeat(
        features.reshape(product.n_groups, weight.shape[1]), n_out // product.n_groups, axis=0
    )
    return np.broadcast_to(grouped.reshape(n_out, weight.shape[1], *([1] * (weight.ndim - 2))), weight.shape)
