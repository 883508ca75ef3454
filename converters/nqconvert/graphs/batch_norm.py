"""Fold BatchNormalization into the convolution or matrix product before it.

Folding comes before quantization: folded weights are other numbers than the trained ones.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from .onnx_tensor import array_of, proto_of, stored_dtype
from .scope import all_names, count_uses, unique_name, walk_graphs

FOLDABLE = ("Conv", "ConvTranspose", "Gemm")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Affine:
    """Batch normalization as ``y = scale * x + shift`` for each channel, in float64."""

    scale: np.ndarray
    shift: np.ndarray


@dataclass(slots=True, kw_only=True)
class _Scope:
    """What folding needs to know about the model."""

    initializers: dict[str, Any]
    uses: Counter[str]
    taken: set[str]
    constants: Any


def fold_batch_norms(model: Any) -> tuple[str, ...]:
    """Fold inference-mode batch norms that follow Conv, ConvTranspose or Gemm.

    Folds only where the product's output has no other consumer and its weight and bias are
    initializers used nowhere else. Computed in float64 and rounded once to the weight's type.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed in place; weights must be initializers of the main graph.

    Returns
    -------
    tuple of str
        Names of the weights that changed.
    """
    graph = model.graph
    inputs = {value.name for value in graph.input}
    scope = _Scope(
        initializers={t.name: t for t in graph.initializer if t.name not in inputs},
        uses=count_uses(graph),
        taken=all_names(graph),
        constants=graph.initializer,
    )
    folded: list[str] = []
    for nested in walk_graphs(graph):
        folded += _fold_graph(nested, scope)
    if folded:
        _drop_unused(graph)
    return tuple(folded)


def _fold_graph(graph: Any, scope: _Scope) -> list[str]:
    """Fold the batch norms among the nodes of one graph."""
    producers = {name: node for node in graph.node for name in node.output}
    folded, gone = [], []
    for position, norm in enumerate(graph.node):
        if norm.op_type != "BatchNormalization" or norm.domain not in ("", "ai.onnx"):
            continue
        product = producers.get(norm.input[0])
        if product is None or not _is_foldable(product, norm, scope):
            continue
        affine = _affine_of(norm, scope)
        if affine is None or not _fold_into(product, affine, scope):
            continue
        product.output[0] = norm.output[0]
        producers[norm.output[0]] = product
        folded.append(product.input[1])
        gone.append(position)
    for position in reversed(gone):
        del graph.node[position]
    return folded


def _is_foldable(product: Any, norm: Any, scope: _Scope) -> bool:
    """Check the pattern: single consumer, private constant weights, inference mode, one output."""
    if product.op_type not in FOLDABLE or product.domain not in ("", "ai.onnx"):
        return False
    if scope.uses[product.output[0]] != 1 or any(norm.output[1:]):
        return False
    attributes = _integers_of(norm)
    if attributes.get("training_mode", 0) or not attributes.get("spatial", 1):
        return False
    private = [name for name in product.input[1:3] if name]
    return all(name in scope.initializers and scope.uses[name] == 1 for name in private)


def _affine_of(norm: Any, scope: _Scope) -> _Affine | None:
    """Return the batch norm as scale and shift, or None if its statistics are not usable constants."""
    if any(name not in scope.initializers for name in norm.input[1:5]):
        return None
    gamma, beta, mean, variance = (
        array_of(scope.initializers[name]).astype(np.float64) for name in norm.input[1:5]
    )
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = gamma / np.sqrt(variance + np.float64(epsilon))
    shift = beta - mean * scale
    return (
        _Affine(scale=scale, shift=shift) if np.isfinite(scale).all() and np.isfinite(shift).all() else None
    )


def _fold_into(product: Any, affine: _Affine, scope: _Scope) -> bool:
    """Scale the weight and bias of `product`; return False if shapes or types do not fit."""
    weight_proto = scope.initializers[product.input[1]]
    dtype = stored_dtype(weight_proto)
    if dtype is None or not dtype.is_float:
        return False
    weight = array_of(weight_proto)
    scaled = _scaled_weight(product, weight, affine.scale)
    bias = _scaled_bias(product, affine, scope)
    if scaled is None or bias is None:
        return False
    folded, folded_bias = scaled.astype(weight.dtype), bias.astype(weight.dtype)
    if not (np.isfinite(folded).all() and np.isfinite(folded_bias).all()):
        return False
    weight_proto.CopyFrom(proto_of(weight_proto.name, folded))
    _set_bias(product, folded_bias, scope)
    return True


def _scaled_weight(product: Any, weight: np.ndarray, scale: np.ndarray) -> np.ndarray | None:
    """Multiply each output channel of `weight` by its scale, in float64."""
    wide = weight.astype(np.float64)
    if product.op_type == "Conv":
        return _scaled_on_axis(wide, scale, 0)
    attributes = _integers_of(product)
    if product.op_type == "Gemm":
        return _scaled_on_axis(wide, scale, 0 if attributes.get("transB", 0) else 1)
    n_groups = attributes.get("group", 1)
    if weight.shape[0] % n_groups or weight.shape[1] * n_groups != scale.size:
        return None
    # A transposed convolution stores (inputs, outputs of one group, kernel): group by group on axis 0.
    grouped = wide.reshape(n_groups, weight.shape[0] // n_groups, *weight.shape[1:])
    factors = scale.reshape(n_groups, 1, weight.shape[1], *([1] * (weight.ndim - 2)))
    scaled: np.ndarray = (grouped * factors).reshape(weight.shape)
    return scaled


def _scaled_on_axis(weight: np.ndarray, scale: np.ndarray, axis: int) -> np.ndarray | None:
    """Multiply `weight` by `scale` laid along `axis`."""
    if weight.shape[axis] != scale.size:
        return None
    shape = [1] * weight.ndim
    shape[axis] = scale.size
    scaled: np.ndarray = weight * scale.reshape(shape)
    return scaled


def _scaled_bias(product: Any, affine: _Affine, scope: _Scope) -> np.ndarray | None:
    """Return the bias after folding, shape (n_channels,), in float64."""
    if len(product.input) < 3 or not product.input[2]:
        return affine.shift
    bias = array_of(scope.initializers[product.input[2]]).astype(np.float64)
    if bias.size not in (1, affine.scale.size) or (bias.ndim and bias.shape[-1] != bias.size):
        return None
    if product.op_type == "Gemm":
        bias = bias * next((a.f for a in product.attribute if a.name == "beta"), 1.0)
    folded: np.ndarray = bias.reshape(-1) * affine.scale + affine.shift
    return folded


def _set_bias(product: Any, bias: np.ndarray, scope: _Scope) -> None:
    """Make `bias` the third input of `product`."""
    for attribute in product.attribute:
        if attribute.name == "beta":
            attribute.f = 1.0
    if len(product.input) > 2 and product.input[2]:
        scope.initializers[product.input[2]].CopyFrom(proto_of(product.input[2], bias))
        return
    weight_name = product.input[1]
    stem = weight_name.removesuffix(".weight")
    name = unique_name(f"{stem}.bias", scope.taken)
    scope.initializers[name] = scope.constants.add()
    scope.initializers[name].CopyFrom(proto_of(name, bias))
    scope.uses[name] = 1
    del product.input[2:]
    product.input.append(name)


def _drop_unused(graph: Any) -> None:
    """Remove initializers that nothing reads any more."""
    uses = count_uses(graph)
    inputs = {value.name for value in graph.input}
    for position in reversed(range(len(graph.initializer))):
        name = graph.initializer[position].name
        if not uses[name] and name not in inputs:
            del graph.initializer[position]


def _integers_of(node: Any) -> dict[str, int]:
    """Return the integer attributes of a node."""
    return {attribute.name: int(attribute.i) for attribute in node.attribute if attribute.type == 2}
