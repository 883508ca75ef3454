"""Quantized tensors as a table of values and one index for each element."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from nqconvert.export.restore import TensorFile
from nqformat import TensorInfo
from nqformat.dtypes import DType
from nqformat.tensor import GroupedTensor, Layout, PackedTensor, Scales, affine_values, cast_values

MAX_ENTRIES = 1 << 16
_MAX_COUNTED_RANGE = 1 << 20
_RAW = (Layout.RAW, Layout.RAW_SPARSE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookTable:
    """A tensor as ``entries[indices]``, exactly.

    Attributes
    ----------
    indices : ndarray of uint8 or uint16, shape of the tensor
    entries : ndarray, shape (n_entries,)
        In the tensor's storage dtype.
    dtype : DType
    offsets : ndarray of int32, or None
        Added to the indices first, broadcast: where the group of each index starts in `entries`.
    columns : int
        Not 0: what was looked up is a matrix of so many columns, and transposed.
    scales : ndarray of float32, shape (n_scales, 1), or None
        Factors of what was looked up, reshaped to (-1, n_scales, `span`).
    span : int
    shape : tuple of int, or None
        What the result is reshaped to, if that is another shape than that of the indices.
    """

    indices: np.ndarray
    entries: np.ndarray
    dtype: DType
    offsets: np.ndarray | None = None
    columns: int = 0
    scales: np.ndarray | None = None
    span: int = 1
    shape: tuple[int, ...] | None = None

    @property
    def n_entries(self) -> int:
        """Number of values that an index can take."""
        groups = 1 if self.offsets is None else self.offsets.size
        return int(self.entries.shape[0]) // groups

    @property
    def side_bytes(self) -> int:
        """Bytes of everything but the indices."""
        others = (self.offsets, self.scales)
        return self.entries.nbytes + sum(array.nbytes for array in others if array is not None)


def read_table(file: TensorFile, info: TensorInfo) -> CodebookTable | str:
    """Return a tensor as a table, or the reason why it has none.

    Views and constants have no symbols of their own; their table is made of the values they hold.
    """
    if info.dtype is None or not info.dtype.is_float:
        return "not floating point"
    if info.layout in _RAW:
        return "stored raw in the file"
    if info.n_elements == 0:
        return "empty"
    if info.layout is Layout.VIEW and any(file.info(name).layout in _RAW for name in info.sources):
        return "view of a tensor stored raw in the file"
    if info.codebook_groups > 1 or info.codebook_width > 1:
        grouped = file.get_grouped(info.name)
        assert grouped is not None
        return table_of_grouped(grouped)
    packed = file.get_packed(info.name)
    if isinstance(packed, PackedTensor) and packed.scales is not None:
        return _scaled_table(packed, packed.scales)
    if isinstance(packed, PackedTensor):
        found = table_of_packed(packed)
    else:
        found = table_of_values(packed, info.dtype)
    return found if found is not None else f"more than {MAX_ENTRIES} distinct values"


def table_of_packed(packed: PackedTensor) -> CodebookTable | None:
    """Return a packed tensor as a table, or None if that takes more than 65,536 entries.

    Entries that no element uses are left out; the implied zero of a sparse tensor gets an entry.
    """
    if packed.codebook is not None:
        symbols = packed.symbols.reshape(-1).astype(np.int64)
        used, positions = _used_symbols(symbols)
        entries = cast_values(packed.codebook, packed.dtype)[used]
    else:
        used, positions = _used_symbols(packed.symbols.reshape(-1).astype(np.int64))
        entries = cast_values(affine_values(used, packed.step, packed.offset), packed.dtype)
    if packed.positions is not None and packed.density < 1:
        entries, zero = _with_zero(entries)
        dense = np.full(math.prod(packed.shape), zero, dtype=np.int64)
        dense[packed.positions] = positions
        positions = dense
    return _table(positions.reshape(packed.shape), entries, packed.dtype)


def table_of_grouped(tensor: GroupedTensor) -> CodebookTable | str:
    """Return a tensor with grouped or vector codebooks as a table, or the reason why it has none.

    Indices stand in the shape (repetitions, groups, span), so that the start of each group is added to them.
    """
    codebook = tensor.codebook
    n_elements = math.prod(tensor.shape)
    if tensor.dtype is not DType.FLOAT32 and tensor.scales is not None:
        return f"scales of a {tensor.dtype.label} tensor"
    if tensor.indices.size * codebook.width != n_elements:
        return "its last unit reaches beyond its elements"
    if tensor.indices.size % (codebook.groups * tensor.span):
        return "groups of unequal length"
    if codebook.entries > MAX_ENTRIES:
        return f"more than {MAX_ENTRIES} distinct values"
    scales = _factors(tensor.scales, n_elements)
    if isinstance(scales, str):
        return scales
    entries = cast_values(codebook.values.reshape(-1, codebook.width), tensor.dtype)
    offsets = (codebook.entries * np.arange(codebook.groups, dtype=np.int32))[:, None]
    return CodebookTable(
        indices=tensor.indices.astype(np.uint8 if codebook.entries <= 256 else np.uint16).reshape(
            -1, codebook.groups, tensor.span
        ),
        entries=np.ascontiguousarray(entries) if codebook.width > 1 else entries.reshape(-1),
        dtype=tensor.dtype,
        offsets=offsets if codebook.groups > 1 else None,
        columns=tensor.shape[0] if tensor.column_scan else 0,
        scales=scales,
        span=1 if tensor.scales is None else tensor.scales.span,
        shape=tensor.shape,
    )


def _scaled_table(packed: PackedTensor, scales: Scales) -> CodebookTable | str:
    """Return a tensor with scales as a table of what is scaled, or the reason why it has none."""
    if packed.dtype is not DType.FLOAT32:
        return f"scales of a {packed.dtype.label} tensor"
    factors = _factors(scales, math.prod(packed.shape))
    if isinstance(factors, str):
        return factors
    table = table_of_packed(replace(packed, scales=None))
    if table is None:
        return f"more than {MAX_ENTRIES} distinct values"
    return replace(table, scales=factors, span=scales.span, shape=packed.shape)


def _factors(scales: Scales | None, n_elements: int) -> np.ndarray | str | None:
    """Return scales as a column, or the reason why no broadcast product gives them."""
    if scales is None:
        return None
    if n_elements % (scales.values.size * scales.span):
        return "scales of blocks of unequal length"
    return scales.values[:, None]


def table_of_values(bits: np.ndarray, dtype: DType) -> CodebookTable | None:
    """Return an array of storage bits as a table of the distinct values in it."""
    unsigned = np.ascontiguousarray(bits).view(f"<u{bits.dtype.itemsize}")
    distinct, positions = np.unique(unsigned, return_inverse=True)
    return _table(positions.reshape(bits.shape), distinct.view(bits.dtype), dtype)


def _table(indices: np.ndarray, entries: np.ndarray, dtype: DType) -> CodebookTable | None:
    """Store the indices in the smallest of uint8 and uint16 that holds them."""
    if entries.size > MAX_ENTRIES:
        return None
    narrow = indices.astype(np.uint8 if entries.size <= 256 else np.uint16)
    return CodebookTable(indices=narrow, entries=entries, dtype=dtype)


def _used_symbols(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct symbols, ascending, and the position of each element's symbol among them."""
    if symbols.size == 0:
        return symbols, symbols
    lowest = int(symbols.min())
    if int(symbols.max()) - lowest >= _MAX_COUNTED_RANGE:
        used, positions = np.unique(symbols, return_inverse=True)
        return used, positions
    shifted = symbols - lowest
    used = np.flatnonzero(np.bincount(shifted))
    place = np.zeros(int(used[-1]) + 1, dtype=np.int64)
    place[used] = np.arange(used.size)
    return used + lowest, place[shifted]


def _with_zero(entries: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the entries with a positive zero among them, and its position."""
    bits = entries.view(f"<u{entries.dtype.itemsize}")
    zeros = np.flatnonzero(bits == 0)
    if zeros.size:
        return entries, int(zeros[0])
    return np.append(entries, np.zeros(1, dtype=entries.dtype)), int(entries.size)
