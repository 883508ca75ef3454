"""Weights as a table look-up inside the exported graph.

``Cast(indices to int32) -> Gather(codebook)`` gives the decoded weights bit for bit. ONNX Runtime computes it
once, when it loads the model; from then on the model runs like a dense one. Embedding tables are looked up
after the rows are gathered, so that they stay small in memory too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from nqconvert.export.building import (
    NODE_BYTES,
    UINT4,
    UINT4_OPSET,
    Chain,
    GraphRewrite,
    PackedType,
    index_type,
    make_node,
)
from nqformat.dtypes import DType

from .codebook_table import CodebookTable, read_table
from .form import Subject, TensorEncoding

LOWEST_OPSET = 13
INT32 = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookEncoding:
    """A tensor as ``entries[indices]``.

    Attributes
    ----------
    table : CodebookTable
    gathered : bool
    """

    table: CodebookTable
    gathered: bool

    @property
    def lowest_opset(self) -> int:
        """First opset at which it can be written."""
        return LOWEST_OPSET

    @property
    def best_opset(self) -> int:
        """Opset 21 where indices of 4 bits help."""
        narrow = self.table.n_entries <= UINT4.highest + 1 and not self.gathered
        return UINT4_OPSET if narrow else LOWEST_OPSET

    def n_bytes(self, opset: int) -> int:
        """Bytes of indices and table."""
        return self._type(opset).n_bytes(self.table.indices.size) + self.table.side_bytes

    def label(self, opset: int) -> str:
        """Name the type of the indices."""
        return f"codebook {self._type(opset).label}"

    def write(self, rewrite: GraphRewrite, name: str) -> None:
        """Decode the tensor before all other nodes."""
        table, kind = self.table, self._type(rewrite.opset)
        indices = rewrite.add_packed(table.indices, kind)
        _decode_whole(rewrite, table, indices, name)

    def write_gathered(self, rewrite: GraphRewrite, name: str, *, whole: str | None) -> None:
        """Gather rows of indices first, then look up the values of those rows only."""
        table, kind = self.table, self._type(rewrite.opset)
        indices = rewrite.add_packed(table.indices, kind)
        codebook = rewrite.add_array(table.entries, table.dtype)

        def decode(rows: str, output: str) -> list[Any]:
            wide = rewrite.name()
            cast = make_node("Cast", [rows], wide, to=INT32)
            return [cast, make_node("Gather", [codebook, wide], output)]

        rewrite.after_gathers(name, indices, decode)
        if whole is not None:
            _decode_whole(rewrite, table, indices, whole)

    def _type(self, opset: int) -> PackedType:
        return index_type(self.table.n_entries, opset, gathered=self.gathered)


class CodebookForm:
    """Weights as indices into tables."""

    keeps_views = True
    required = ""

    def encode(self, subject: Subject) -> TensorEncoding | str:
        """Return the tensor as a table, if that is smaller than the dense tensor."""
        table = read_table(subject.file, subject.info)
        if isinstance(table, str):
            return table
        if table.indices.nbytes + table.side_bytes + NODE_BYTES * n_nodes(table) >= subject.info.plain_bytes:
            return "a codebook would not be smaller"
        return CodebookEncoding(table=table, gathered=subject.gathered and table.shape is None)


def n_nodes(table: CodebookTable) -> int:
    """Return about how many nodes a table takes, initializers of its own counted as nodes."""
    return 2 + (table.offsets is not None) + 2 * (table.scales is not None) + 2 * bool(table.columns)


def finish_table(chain: Chain, table: CodebookTable) -> None:
    """Append what comes after the look-up: columns, scales, shape."""
    if table.columns:
        chain.reshape((-1, table.columns))
        chain.add("Transpose", perm=[1, 0])
    if table.scales is not None:
        chain.reshape((-1, table.scales.size, table.span))
        chain.add("Mul", chain.constant(table.scales, DType.FLOAT32))
    if table.shape is not None:
        chain.reshape(table.shape)


def _decode_whole(rewrite: GraphRewrite, table: CodebookTable, indices: str, output: str) -> None:
    """Look all elements up, before all other nodes."""
    codebook = rewrite.add_array(np.ascontiguousarray(table.entries), table.dtype)
    chain = Chain(rewrite, indices)
    chain.add("Cast", to=INT32)
    if table.offsets is not None:
        chain.add("Add", chain.constant(table.offsets, DType.INT32))
    chain.add("Gather", codebook, table_first=True)
    finish_table(chain, table)
    chain.end(output)
