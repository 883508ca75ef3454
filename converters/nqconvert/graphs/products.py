"""Products of activations with weights in a graph, and weights as matrices of outputs by inputs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .scope import node_attributes

__all__ = ["Product", "find_products"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A node that multiplies an activation by a weight.

    Attributes
    ----------
    operator : {"Gemm", "MatMul", "Conv", "ConvTranspose"}
    weight, activation, output : str
        Names of the tensor, of its input value and of the result in the graph.
    shape : tuple of int
        Of the weight.
    feature_axis : int
        Axis of the activation whose entries are told apart.
    weight_axis : int
        Axis of the weight that runs along the features.
    bias : str or None
        Tensor added to every output, one element for each.
    n_groups : int
        Groups of a convolution.
    attributes : dict
        The node's attributes by name.
    """

    operator: str
    weight: str
    activation: str
    output: str
    shape: tuple[int, ...]
    feature_axis: int
    weight_axis: int
    bias: str | None = None
    n_groups: int = 1
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def positions_share(self) -> float:
        """How many output positions there are for an input position."""
        if self.operator != "Conv":
            return 1.0
        return 1.0 / float(math.prod(self.attributes.get("strides", ())))

    @property
    def is_matrix(self) -> bool:
        """Whether :meth:`matrices` can show the weight: no stack of matrices, no weight on the left."""
        return self.operator != "MatMul" or (len(self.shape) == 2 and self.weight_axis == -2)

    def multiplications(self, n_elements: int) -> int:
        """Return the multiplications behind so many elements of the output."""
        if self.operator == "ConvTranspose":
            strides = math.prod(self.attributes.get("strides", ()))
            return int(n_elements * self.shape[0] * math.prod(self.shape[2:]) // (strides * self.n_groups))
        if self.operator == "Conv":
            return n_elements * math.prod(self.shape[1:])
        return n_elements * self.shape[self.weight_axis]

    def matrices(self, weight: np.ndarray) -> np.ndarray:
        """Return the weight as (groups, outputs of a group, inputs).

        Inputs of a convolution are (channel, kernel element) pairs. Each kernel element of a transposed
        convolution is an output of its own.
        """
        if self.operator == "Conv":
            return weight.reshape(self.n_groups, weight.shape[0] // self.n_groups, -1)
        if self.operator == "ConvTranspose":
            n_in = weight.shape[0] // self.n_groups
            return weight.reshape(self.n_groups, n_in, -1).transpose(0, 2, 1)
        return (weight if self.weight_axis == 1 else weight.T)[None]

    def restored(self, matrices: np.ndarray) -> np.ndarray:
        """Return what :meth:`matrices` made of a weight in the weight's shape."""
        if self.operator == "Conv":
            return matrices.reshape(self.shape)
        if self.operator == "ConvTranspose":
            return np.ascontiguousarray(matrices.transpose(0, 2, 1)).reshape(self.shape)
        return np.ascontiguousarray(matrices[0] if self.weight_axis == 1 else matrices[0].T)


def find_products(graph: Any, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[Product]:
    """Yield the products of a GraphProto whose weight is one of the tensors in `shapes`, in graph order.

    Products inside the bodies of If, Loop and Scan are not looked for. An Add of a tensor behind a MatMul
    counts as its bias.
    """
    added = _added_tensors(graph, shapes)
    for node in graph.node:
        if node.domain not in ("", "ai.onnx") or len(node.input) < 2:
            continue
        found = _product(node, shapes)
        if found is None:
            continue
        if found.operator == "MatMul" and found.output in added:
            found = replace(found, bias=added[found.output])
        yield found if _fits(found, shapes) else replace(found, bias=None)


def _fits(product: Product, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the bias has one element for each output."""
    if product.bias is None:
        return True
    shape = product.shape
    if product.operator == "MatMul":
        return shapes[product.bias] == (shape[-1],)
    if product.operator == "ConvTranspose":
        return shapes[product.bias] == (shape[1] * product.n_groups,)
    outputs = shape[0] if product.operator == "Conv" else shape[1 - product.weight_axis]
    return shapes[product.bias] in ((outputs,), (1, outputs))


def _product(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> Product | None:
    left, right = node.input[0], node.input[1]
    if node.op_type == "MatMul":
        return _matmul(node, shapes)
    if node.op_type not in ("Gemm", "Conv", "ConvTranspose") or right not in shapes or left in shapes:
        return None
    attributes = node_attributes(node)
    bias = node.input[2] if len(node.input) > 2 and node.input[2] in shapes else None
    if node.op_type == "Gemm":
        plain = attributes.get("beta", 1.0) == 1.0 and attributes.get("alpha", 1.0) == 1.0
        feature_axis = 0 if attributes.get("transA") else 1
        weight_axis = 1 if attributes.get("transB") else 0
    else:
        plain, feature_axis, weight_axis = True, 1, 1 if node.op_type == "Conv" else 0
    return Product(
        operator=node.op_type,
        weight=right,
        activation=left,
        output=node.output[0],
        shape=shapes[right],
        feature_axis=feature_axis,
        weight_axis=weight_axis,
        bias=bias if plain else None,
        n_groups=int(attributes.get("group", 1)),
        attributes=attributes,
    )


def _matmul(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> Product | None:
    left, right = node.input
    if right in shapes and left not in shapes and len(shapes[right]) >= 2:
        weight, activation, feature_axis, weight_axis = right, left, -1, -2
    elif left in shapes and right not in shapes and len(shapes[left]) >= 2:
        weight, activation, feature_axis, weight_axis = left, right, -2, -1
    else:
        return None
    return Product(
        operator="MatMul",
        weight=weight,
        activation=activation,
        output=node.output[0],
        shape=shapes[weight],
        feature_axis=feature_axis,
        weight_axis=weight_axis,
    )


def _added_tensors(graph: Any, tensors: Container[str]) -> dict[str, str]:
    """Return the tensor that an Add puts on a value, where the value is used nowhere else."""
    uses = Counter(name for node in graph.node for name in node.input)
    added = {}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        for value, tensor in (tuple(node.input), tuple(reversed(node.input))):
            if tensor in tensors and value not in tensors and uses[value] == 1:
                added[value] = tensor
    return added
