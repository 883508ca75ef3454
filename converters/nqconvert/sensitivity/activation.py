"""Mean squared inputs of matrix products, through ONNX Runtime alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from nqconvert.graphs.onnx_tensor import proto_of
from nqconvert.graphs.ort_session import open_session, run_session
from nqconvert.sources.model_source import ModelSource
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .calibration import calibration_batches, feeds_of
from .settings import SensitivitySettings

__all__ = ["measure_activation"]

_MAX_MODEL_BYTES = (1 << 31) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """A node that multiplies an activation by a weight.

    Attributes
    ----------
    weight, activation : str
        Names of the tensor and of the value in the graph.
    feature_axis : int
        Axis of the activation whose entries are told apart.
    weight_axis : int
        Axis of the weight that runs along the features.
    n_groups : int
        Groups of a convolution.
    positions_share : float
        How many output positions there are for an input position.
    """

    weight: str
    activation: str
    feature_axis: int
    weight_axis: int
    n_groups: int = 1
    positions_share: float = 1.0


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
    arrays = {**source.tensors, **_assembled_views(source)}
    model = require_package("onnx").ModelProto.FromString(source.graph)
    products = list(_products(model, arrays))
    session = open_session(_observed(model, arrays, [product.activation for product in products]))
    names = [value.name for value in session.get_outputs()]
    sums: dict[str, np.ndarray] = {}
    done = 0
    for batch in calibration_batches(calibration, batch_size=settings.batch_size, samples=settings.samples):
        feeds = feeds_of(batch, source.input_names)
        values = {**feeds, **dict(zip(names, run_session(session, feeds), strict=True))}
        for product in products:
            share = _feature_squares(values[product.activation], product)
            held = sums.get(_key(product))
            sums[_key(product)] = share if held is None else held + share
        done += batch.n_samples
        settings.progress(f"sensitivity: {done} of at most {settings.samples} samples")
    return _by_stored_tensor(source, arrays, products, sums, done)


def _key(product: _Product) -> str:
    return f"{product.weight}\n{product.activation}\n{product.weight_axis}"


def _assembled_views(source: ModelSource) -> dict[str, np.ndarray]:
    return {name: view.assemble(source.tensors) for name, view in source.views.items()}


def _observed(model: Any, arrays: dict[str, np.ndarray], wanted: list[str]) -> bytes:
    """Return the model with its tensors inside and the wanted values as further outputs."""
    onnx = require_package("onnx")
    if sum(array.nbytes for array in arrays.values()) + model.ByteSize() > _MAX_MODEL_BYTES:
        raise ConversionError("the model is too large to be observed: more than 2 GiB of weights")
    model.graph.initializer.extend(proto_of(name, array) for name, array in arrays.items())
    known = {value.name for value in (*model.graph.output, *model.graph.input)} | set(arrays)
    for name in dict.fromkeys(wanted):
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    content: bytes = model.SerializeToString()
    return content


def _products(model: Any, arrays: dict[str, np.ndarray]) -> Iterator[_Product]:
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            continue
        left, right = node.input[0], node.input[1]
        attributes = {a.name: a for a in node.attribute}
        if node.op_type == "Gemm" and right in arrays and left not in arrays:
            along = 1 if _integer(attributes, "transB") else 0
            axis = 0 if _integer(attributes, "transA") else 1
            yield _Product(weight=right, activation=left, feature_axis=axis, weight_axis=along)
        elif node.op_type == "MatMul":
            if right in arrays and left not in arrays and arrays[right].ndim >= 2:
                yield _Product(weight=right, activation=left, feature_axis=-1, weight_axis=-2)
            elif left in arrays and right not in arrays and arrays[left].ndim >= 2:
                yield _Product(weight=left, activation=right, feature_axis=-2, weight_axis=-1)
        elif node.op_type in ("Conv", "ConvTranspose") and right in arrays and left not in arrays:
            yield _convolution(node, attributes)


def _convolution(node: Any, attributes: dict[str, Any]) -> _Product:
    n_groups = _integer(attributes, "group", 1)
    strides = math.prod(attributes["strides"].ints) if "strides" in attributes else 1
    forward = node.op_type == "Conv"
    return _Product(
        weight=node.input[1],
        activation=node.input[0],
        feature_axis=1,
        weight_axis=1 if forward else 0,
        n_groups=n_groups if forward else 1,
        positions_share=1.0 / strides if forward else 1.0,
    )


def _integer(attributes: dict[str, Any], name: str, default: int = 0) -> int:
    return int(attributes[name].i) if name in attributes else default


def _feature_squares(activation: np.ndarray, product: _Product) -> np.ndarray:
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
    products: list[_Product],
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


def _spread(features: np.ndarray, weight: np.ndarray, product: _Product) -> np.ndarray | None:
    axis = product.weight_axis % weight.ndim
    shape = [1] * weight.ndim
    shape[axis] = weight.shape[axis]
    if product.n_groups == 1:
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
