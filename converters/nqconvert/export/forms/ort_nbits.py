"""Matrices as ONNX Runtime's MatMulNBits, which multiplies by 4-bit integers as they are stored.

``accuracy_level`` 1 keeps the inputs in float32. Only ONNX Runtime knows the operator (domain com.microsoft).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nqconvert.export.building import NODE_BYTES, UINT4, GraphRewrite, copy_of, make_node, pack_bits
from nqconvert.graphs.scope import count_uses, walk_graphs
from nqformat.dtypes import DType
from nqformat.tensor import ViewTensor

from .affine import AffineWeights, read_affine
from .form import Subject, TensorEncoding
from .products import products_of

_DOMAIN = "com.microsoft"
_LOWEST_OPSET = 13
_BLOCKS = (256, 128, 64, 32)
_IMPLICIT_ZERO = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class NBitsEncoding:
    """A matrix of shape (inputs, outputs) or its transpose, in blocks of `block` inputs.

    Attributes
    ----------
    q : ndarray of int64, shape (n_outputs, n_inputs), values 0..15
    zero : int
    scale : ndarray of float32, shape (n_outputs,)
    block : int
    """

    q: np.ndarray
    zero: int
    scale: np.ndarray
    block: int

    @property
    def lowest_opset(self) -> int:
        """First opset at which it can be written."""
        return _LOWEST_OPSET

    @property
    def best_opset(self) -> int:
        """Any opset does."""
        return _LOWEST_OPSET

    @property
    def n_blocks(self) -> int:
        """Blocks of a row."""
        return -(-int(self.q.shape[1]) // self.block)

    def n_bytes(self, opset: int) -> int:
        """Bytes of integers, scales and zero points."""
        n_rows = int(self.q.shape[0])
        zeros = 0 if self.zero == _IMPLICIT_ZERO else n_rows * -(-self.n_blocks // 2)
        return n_rows * self.n_blocks * (self.block // 2 + 4) + zeros

    def label(self, opset: int) -> str:
        """Name the size of the blocks."""
        return f"ort-nbits 4-bit, blocks of {self.block}"

    def write(self, rewrite: GraphRewrite, name: str) -> None:
        """Replace the products that take the matrix."""
        rewrite.import_domain(_DOMAIN, 1)
        inputs = self._initializers(rewrite, name)
        for graph in walk_graphs(rewrite.model.graph):
            nodes: list[Any] = []
            for node in graph.node:
                if len(node.input) > 1 and node.input[1] == name:
                    nodes += self._product(rewrite, node, inputs)
                else:
                    nodes.append(copy_of(node))
            del graph.node[:]
            graph.node.extend(nodes)

    def _product(self, rewrite: GraphRewrite, node: Any, inputs: list[str]) -> list[Any]:
        """Return the nodes in place of a MatMul or Gemm."""
        has_bias = len(node.input) > 2 and bool(node.input[2])
        output = rewrite.name() if has_bias else node.output[0]
        product = make_node(
            "MatMulNBits",
            [node.input[0], *inputs],
            output,
            domain=_DOMAIN,
            K=int(self.q.shape[1]),
            N=int(self.q.shape[0]),
            bits=4,
            block_size=self.block,
            accuracy_level=1,
        )
        if not has_bias:
            return [product]
        return [product, make_node("Add", [output, node.input[2]], node.output[0])]

    def _initializers(self, rewrite: GraphRewrite, name: str) -> list[str]:
        """Add integers, scales and, unless they are all 8, zero points."""
        n_rows, n_inputs = self.q.shape
        padded = np.full((n_rows, self.n_blocks * self.block), self.zero)
        padded[:, :n_inputs] = self.q
        packed = np.frombuffer(pack_bits(padded, 4), dtype=np.uint8)
        packed = packed.reshape(n_rows, self.n_blocks, self.block // 2)
        scales = np.repeat(self.scale[:, None], self.n_blocks, axis=1)
        names = [
            rewrite.add_array(packed, DType.UINT8, name=f"{name}.quantized"),
            rewrite.add_array(scales, DType.FLOAT32, name=f"{name}.scales"),
        ]
        if self.zero != _IMPLICIT_ZERO:
            zeros = np.full((n_rows, 2 * -(-self.n_blocks // 2)), self.zero)
            points = np.frombuffer(pack_bits(zeros, 4), dtype=np.uint8).reshape(n_rows, -1)
            names.append(rewrite.add_array(points, DType.UINT8, name=f"{name}.zero_points"))
        return names


class NBitsForm:
    """Matrices of at most 16 steps as MatMulNBits."""

    keeps_views = False
    required = "matrices of at most 16 evenly spaced values that only MatMul or Gemm take"

    def encode(self, subject: Subject) -> TensorEncoding | str:
        """Return the matrix in blocks, or the reason why MatMulNBits cannot take it."""
        outputs_first = _outputs_first(subject)
        if isinstance(outputs_first, str):
            return outputs_first
        weights = _matrix(subject)
        if isinstance(weights, str):
            return weights
        rows = weights if outputs_first else weights.transposed()
        if rows.axis not in (None, 0):
            return "scales along the inputs of the product"
        return _blocked(rows, subject.info.plain_bytes)


def _blocked(rows: AffineWeights, plain_bytes: int) -> NBitsEncoding | str:
    """Return a matrix, outputs first, in blocks."""
    fitting = rows.stored(most_bits=4)
    if fitting is None:
        return "more than 16 steps of its grid"
    kind, shift = fitting
    shift = _IMPLICIT_ZERO if kind is not UINT4 else shift
    scale = np.broadcast_to(rows.scale, (rows.k.shape[0],)).astype(np.float32)
    made = [
        NBitsEncoding(q=rows.k + shift, zero=rows.zero + shift, scale=scale, block=block) for block in _BLOCKS
    ]
    smallest = min(made, key=lambda encoding: encoding.n_bytes(_LOWEST_OPSET))
    if smallest.n_bytes(_LOWEST_OPSET) + 4 * NODE_BYTES >= plain_bytes:
        return "blocks would not be smaller"
    return smallest


def _outputs_first(subject: Subject) -> bool | str:
    """Tell whether the products take the matrix transposed; the reason if they are no such products."""
    name, graph = subject.info.name, subject.stored.model.graph
    if len(subject.info.shape) != 2:
        return "no matrix"
    found = list(products_of(graph, name))
    if not found or len(found) < count_uses(graph)[name]:
        return "not only MatMul and Gemm take it"
    if len(set(found)) > 1:
        return "taken both as it is and transposed"
    return found[0]


def _matrix(subject: Subject) -> AffineWeights | str:
    """Return a matrix, or the transpose that it is a view of, on its grid."""
    view = subject.file.view(subject.info.name)
    if view is None:
        return read_affine(subject)
    if not _is_transpose(view):
        return "view of parts of other tensors"
    source = subject.file.info(view.sources[0].name)
    if (view.sources[0].start, view.sources[0].stop) != (0, source.shape[0]):
        return "view of parts of other tensors"
    found = read_affine(Subject(file=subject.file, stored=subject.stored, info=source, gathered=False))
    return found if isinstance(found, str) else found.transposed()


def _is_transpose(view: ViewTensor) -> bool:
    return len(view.sources) == 1 and view.permutation == (1, 0) and len(view.shape) == 2
