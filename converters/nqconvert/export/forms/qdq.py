"""Weights as integers and DequantizeLinear, as toolchains for integer hardware read them.

Only weights on an evenly spaced grid, with one scale or one for each index of axis 0. ONNX Runtime turns
DequantizeLinear before a MatMul into a product with inputs rounded to 8 bits (a relative error of 0.5 %)
where the scale is one number or stands along the outputs. A matrix that a MatMul may take therefore has its
scale repeated along axis 0, and one that is going to be transposed is reshaped in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from nqconvert.export.building import Chain, GraphRewrite, PackedType, make_node
from nqconvert.graphs.scope import count_uses
from nqformat.dtypes import DType

from .affine import AffineWeights, read_affine
from .form import Subject, TensorEncoding
from .products import products_of

_PER_TENSOR_OPSET, _SHORT_OPSET = 13, 21


@dataclass(frozen=True, slots=True, kw_only=True)
class QdqEncoding:
    """Integers, scale and zero point of a tensor.

    Attributes
    ----------
    weights : AffineWeights
    gathered : bool
    is_reshaped : bool
        Whether the integers have one more axis, in front, which a Reshape removes.
    """

    weights: AffineWeights
    gathered: bool
    is_reshaped: bool = False

    @property
    def lowest_opset(self) -> int:
        """First opset at which it can be written."""
        return _SHORT_OPSET if self._type(_PER_TENSOR_OPSET)[0].bits > 8 else _PER_TENSOR_OPSET

    @property
    def best_opset(self) -> int:
        """Opset 21 where integers of 4 bits help."""
        return _SHORT_OPSET if self._type(_SHORT_OPSET)[0].bits != 8 else _PER_TENSOR_OPSET

    def n_bytes(self, opset: int) -> int:
        """Bytes of integers and scales."""
        kind, shift = self._type(opset)
        zeros = self.weights.scale.size if shift or self.weights.zero else 0
        return kind.n_bytes(self.weights.k.size) + self.weights.scale.nbytes + kind.n_bytes(zeros)

    def label(self, opset: int) -> str:
        """Name the type of the integers."""
        channels = "" if self.weights.axis is None else ", a scale for each row"
        return f"qdq {self._type(opset)[0].label}{channels}"

    def write(self, rewrite: GraphRewrite, name: str) -> None:
        """Dequantize the tensor before all other nodes."""
        integers, parameters = self._initializers(rewrite, name)
        self._decode_whole(rewrite, integers, parameters, name)

    def write_gathered(self, rewrite: GraphRewrite, name: str, *, whole: str | None) -> None:
        """Gather rows of integers first, then dequantize those rows only."""
        integers, parameters = self._initializers(rewrite, name)

        def decode(rows: str, output: str) -> list[Any]:
            return [make_node("DequantizeLinear", [rows, *parameters], output)]

        rewrite.after_gathers(name, integers, decode)
        if whole is not None:
            self._decode_whole(rewrite, integers, parameters, whole)

    def _decode_whole(self, rewrite: GraphRewrite, integers: str, parameters: list[str], output: str) -> None:
        chain = Chain(rewrite, integers)
        axis = {} if self.weights.axis is None else {"axis": self.weights.axis + self.is_reshaped}
        chain.add("DequantizeLinear", *parameters, **axis)
        if self.is_reshaped:
            chain.reshape(self.weights.k.shape)
        chain.end(output)

    def _initializers(self, rewrite: GraphRewrite, name: str) -> tuple[str, list[str]]:
        """Add the initializers; return the names of the integers and of scale and zero point."""
        kind, shift = self._type(rewrite.opset)
        weights = self.weights
        stored = weights.k + shift
        integers = rewrite.add_packed(
            stored[None] if self.is_reshaped else stored, kind, name=f"{name}.quantized"
        )
        parameters = [rewrite.add_array(weights.scale, DType.FLOAT32, name=f"{name}.scale")]
        if weights.zero + shift:
            zeros = np.full(weights.scale.shape, weights.zero + shift)
            parameters.append(rewrite.add_packed(zeros, kind, name=f"{name}.zero_point"))
        return integers, parameters

    def _type(self, opset: int) -> tuple[PackedType, int]:
        whole_bytes = self.gathered or opset < _SHORT_OPSET
        found = self.weights.stored(whole_bytes=whole_bytes)
        assert found is not None
        return found


def _needs_rows(subject: Subject, weights: AffineWeights) -> bool:
    """Tell whether a product may take a matrix with one scale as it is."""
    if weights.axis is not None or weights.k.ndim != 2:
        return False
    name, graph = subject.info.name, subject.stored.model.graph
    return sum(products_of(graph, name)) < count_uses(graph)[name]


class QdqForm:
    """Weights as integers and DequantizeLinear."""

    keeps_views = True
    required = "weights on an evenly spaced grid (method uniform, ecsq or lossless of such weights)"

    def encode(self, subject: Subject) -> TensorEncoding | str:
        """Return the tensor as integers, if it is on a grid that DequantizeLinear gives back exactly."""
        weights = read_affine(subject)
        if isinstance(weights, str):
            return weights
        if weights.stored() is None:
            return "more than 65,536 steps of its grid"
        gathered = subject.gathered and weights.axis is None and not subject.viewed
        if not gathered and _needs_rows(subject, weights):
            rows = np.full(weights.k.shape[0], weights.scale, dtype=np.float32)
            weights = replace(weights, scale=rows, axis=0)
        encoding = QdqEncoding(weights=weights, gathered=gathered, is_reshaped=subject.viewed)
        if encoding.n_bytes(encoding.best_opset) + 200 >= subject.info.plain_bytes:
            return "integers would not be smaller"
        return encoding
