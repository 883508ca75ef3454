"""Pruned weights as gaps and values, put into zeros inside the exported graph.

The gap before each nonzero, the number of zeros since the one before, takes 4 or 8 bits; the largest
number means that many zeros and no element (relative indices of Han et al. 2015, section 3, without a
filler's value). ``CumSum`` of the gaps gives positions, ``Gather`` from a codebook the values,
``ScatterElements`` puts these in place of zeros. ONNX Runtime computes that once, when it loads the model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nqconvert.export.building import (
    NODE_BYTES,
    UINT4,
    UINT4_OPSET,
    UINT8,
    Chain,
    GraphRewrite,
    PackedType,
    index_type,
)
from nqconvert.graphs.onnx_tensor import ONNX_OF_DTYPE
from nqformat.dtypes import DType
from nqformat.optional_packages import require_package

from .codebook import INT32, LOWEST_OPSET, finish_table
from .codebook_table import CodebookTable, read_table
from .form import Subject, TensorEncoding

_N_NODES = 12
_WORTHWHILE_BYTES = 2 * NODE_BYTES


@dataclass(frozen=True, kw_only=True)
class SparseEncoding:
    """Gaps and codes of the nonzeros of a tensor.

    Attributes
    ----------
    table : CodebookTable
        The whole tensor.
    gaps : ndarray of int64, shape (n_nonzeros,)
        Zeros before each nonzero since the last.
    codes : ndarray, shape (n_nonzeros,)
        Places in `entries`.
    entries : ndarray, shape (n_entries,)
        Values without zero.
    columns : int
        Not 0: the scan goes down the so many columns of the (shape[0], rest) matrix.
    """

    table: CodebookTable
    gaps: np.ndarray
    codes: np.ndarray
    entries: np.ndarray
    columns: int

    @property
    def lowest_opset(self) -> int:
        """First opset at which it can be written."""
        return LOWEST_OPSET

    @cached_property
    def best_opset(self) -> int:
        """Opset 21 where integers of 4 bits help."""
        return UINT4_OPSET if self.n_bytes(UINT4_OPSET) < self.n_bytes(LOWEST_OPSET) else LOWEST_OPSET

    def n_bytes(self, opset: int) -> int:
        """Bytes of gaps, codes and tables."""
        gap_bytes = self._gap_type(opset).n_bytes(n_gaps(self.gaps, self._gap_type(opset)))
        code_bytes = self._code_type(opset).n_bytes(self.codes.size)
        scales = 0 if self.table.scales is None else self.table.scales.nbytes
        return gap_bytes + code_bytes + self.entries.nbytes + scales

    def label(self, opset: int) -> str:
        """Name the types of gaps and codes."""
        return f"sparse {self._gap_type(opset).label} gaps, {self._code_type(opset).label} values"

    def write(self, rewrite: GraphRewrite, name: str) -> None:
        """Decode the tensor before all other nodes."""
        zeros = self._zeros(rewrite, name)
        positions = self._positions(rewrite, name)
        values = Chain(
            rewrite, name, rewrite.add_packed(f"{name}.codes", self.codes, self._code_type(rewrite.opset))
        )
        values.add("Cast", "code", to=INT32)
        codebook = rewrite.add_array(f"{name}.codebook", self.entries, self.table.dtype)
        values.add("Gather", "value", codebook, table_first=True, axis=0)
        rewrite.decoders += [*zeros.nodes, *positions.nodes, *values.nodes]
        whole = Chain(rewrite, name, zeros.value)
        whole.add("ScatterElements", "flat", positions.value, values.value, axis=0)
        if self.columns:
            whole.reshape("turned", (self.columns, -1))
            whole.add("Transpose", "straight", perm=[1, 0])
        if self.table.shape is None:
            whole.reshape("plain", self.table.indices.shape)
        finish_table(whole, self.table)
        whole.end(name)

    def _zeros(self, rewrite: GraphRewrite, name: str) -> Chain:
        """Add as many zeros as the tensor has elements."""
        chain = Chain(rewrite, name, "")
        n_elements = math.prod(self.table.indices.shape)
        chain.value = chain.integers("size", (n_elements,))
        data_type = ONNX_OF_DTYPE[self.table.dtype]
        zero = require_package("onnx").helper.make_tensor("", data_type, [1], [0])
        chain.add("ConstantOfShape", "zeros", value=zero)
        return chain

    def _positions(self, rewrite: GraphRewrite, name: str) -> Chain:
        """Add the sums of the gaps: where each nonzero stands."""
        kind = self._gap_type(rewrite.opset)
        numbers = gap_numbers(self.gaps, kind)
        wide = DType.INT32 if self.table.indices.size < 1 << 31 else DType.INT64
        chain = Chain(rewrite, name, rewrite.add_packed(f"{name}.gaps", numbers, kind))
        gaps = chain.add("Cast", "gap", to=ONNX_OF_DTYPE[wide])
        one = chain.constant("one", np.ones((), wide.storage_dtype), wide)
        chain.add("Add", "advance", one)
        axis = chain.constant("axis", np.zeros((), "<i4"), DType.INT32)
        if numbers.size == self.gaps.size:
            chain.add("CumSum", "sum", axis)
            chain.add("Sub", "position", one)
            return chain
        filler = chain.constant("filler", np.array(kind.highest, wide.storage_dtype), wide)
        chain.add("Min", "step", filler)
        chain.add("CumSum", "sum", axis)
        positions = chain.add("Sub", "position", one)
        chain.value = gaps
        kept = chain.add("Less", "kept", filler)
        chain.value = positions
        chain.add("Compress", "positions", kept, axis=0)
        return chain

    def _gap_type(self, opset: int) -> PackedType:
        kinds = [kind for kind in (UINT4, UINT8) if kind.opset <= opset]
        return min(kinds, key=lambda kind: kind.n_bytes(n_gaps(self.gaps, kind)))

    def _code_type(self, opset: int) -> PackedType:
        return index_type(self.entries.size, opset)


class SparseForm:
    """Weights as gaps and values."""

    keeps_views = True
    required = ""

    def encode(self, subject: Subject) -> TensorEncoding | str:
        """Return the tensor as gaps and values, if that is smaller than the dense tensor."""
        table = read_table(subject.file, subject.info)
        if isinstance(table, str):
            return table
        return encode_table(table, subject.info.plain_bytes)


def encode_table(table: CodebookTable, plain_bytes: int) -> SparseEncoding | str:
    """Return a table without its zeros, or the reason why that does not work."""
    if table.entries.ndim > 1 or table.offsets is not None:
        return "codebooks of groups or vectors"
    if table.dtype is DType.BFLOAT16:
        return "bfloat16 values cannot be scattered"
    zeros = np.flatnonzero(table.entries.view(f"<u{table.entries.itemsize}") == 0)
    if not zeros.size:
        return "no zeros"
    zero = int(zeros[0])
    if (table.indices == zero).all():
        return "nothing but zeros"
    found = min((_encoding(table, zero, columns) for columns in _scans(table)), key=_cost)
    if found.n_bytes(found.lowest_opset) + NODE_BYTES * _N_NODES >= plain_bytes:
        return "too few zeros to be smaller"
    return found


def n_gaps(gaps: np.ndarray, kind: PackedType) -> int:
    """Return how many numbers of that type gaps take, fillers included."""
    return int(gaps.size + (gaps // kind.highest).sum())


def gap_numbers(gaps: np.ndarray, kind: PackedType) -> np.ndarray:
    """Return gaps as numbers of that type: the largest stands for that many zeros and no element."""
    fillers = gaps // kind.highest
    numbers = np.full(int(gaps.size + fillers.sum()), kind.highest, dtype=np.int64)
    numbers[np.cumsum(fillers + 1) - 1] = gaps % kind.highest
    return numbers


def _cost(encoding: SparseEncoding) -> int:
    return encoding.n_bytes(UINT4_OPSET) + (_WORTHWHILE_BYTES if encoding.columns else 0)


def _scans(table: CodebookTable) -> list[int]:
    """Return the scans to try: 0 for C order, else the number of columns."""
    shape = table.indices.shape
    if len(shape) < 2 or table.columns or min(shape[0], table.indices.size // shape[0]) < 2:
        return [0]
    return [0, table.indices.size // shape[0]]


def _encoding(table: CodebookTable, zero: int, columns: int) -> SparseEncoding:
    """Split a table into gaps and codes along one scan."""
    scan = table.indices.reshape(-1, columns).T if columns else table.indices
    flat = scan.reshape(-1)
    positions = np.flatnonzero(flat != zero)
    codes = flat[positions]
    return SparseEncoding(
        table=table,
        gaps=np.diff(positions, prepend=-1) - 1,
        codes=codes - (codes > zero).astype(codes.dtype),
        entries=np.delete(table.entries, zero),
        columns=columns,
    )
