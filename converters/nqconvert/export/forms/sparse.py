"""Pruned weights as words for zeros and values, put into zeros inside the exported graph.

``Gather`` tells how far each word advances, ``CumSum`` where it ends, a second ``Gather`` which entry of the
codebook stands there; ``ScatterElements`` puts these numbers in place of zeros. Small tensors share one such
chain, whose result ``Split`` cuts into them, and each has a codebook of its own. ONNX Runtime computes that
once, when it loads the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nqconvert.export.building import (
    NODE_BYTES,
    UINT4,
    UINT4_OPSET,
    UINT8,
    UINT16,
    Chain,
    GraphRewrite,
    PackedType,
    index_type,
    make_node,
)
from nqconvert.graphs.onnx_tensor import ONNX_OF_DTYPE
from nqformat.dtypes import DType
from nqformat.optional_packages import require_package

from .codebook import INT32, LOWEST_OPSET, finish_table
from .codebook_table import CodebookTable, read_table
from .form import Subject, TensorEncoding
from .sparse_words import WordTable, best_words

SHARED_ELEMENTS = 1 << 20
"""Most elements of tensors that share a chain: ONNX Runtime holds numbers for all of them while it loads."""

_N_NODES = 12
_LONGEST_RUN = 15
_WORTHWHILE_WORDS = 2 * NODE_BYTES
_NARROW_CODES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class WordStream:
    """Nonzeros of one or more tensors, one after the other, as words.

    Attributes
    ----------
    table : WordTable
    words : ndarray of int64
    kind : PackedType
        Of the words.
    values : ndarray of int64, shape (n_nonzeros,), or None
        One more than the numbers of the values, if these do not belong to the words.
    value_kind : PackedType
    """

    table: WordTable
    words: np.ndarray
    kind: PackedType
    values: np.ndarray | None
    value_kind: PackedType

    @property
    def advance_kind(self) -> PackedType:
        """Type of the table of advances."""
        return UINT8 if self.table.advances().max() <= UINT8.highest else UINT16

    @property
    def n_bytes(self) -> int:
        """Bytes of words, values and tables."""
        tables = self.advance_kind.n_bytes(self.table.n_words)
        rest = self.table.n_words if self.values is None else self.value_kind.n_bytes(self.values.size)
        return self.kind.n_bytes(self.words.size) + tables + rest

    @property
    def label(self) -> str:
        """Name the types of the initializers."""
        if self.values is None:
            return f"sparse {self.kind.label} gaps with values"
        return f"sparse {self.kind.label} gaps, {self.value_kind.label} values"


def stream_of(gaps: np.ndarray, codes: np.ndarray, opset: int) -> WordStream:
    """Return nonzeros as the smallest stream that an opset can decode.

    Parameters
    ----------
    gaps, codes : ndarray of int64, shape (n_nonzeros,)
        Zeros before each nonzero, and the number of its value.
    opset : int
    """
    value_kind = index_type(int(codes.max()) + 2, opset)
    none = np.zeros_like(codes)
    tried = [(UINT8, codes, None)]
    tried += [(kind, none, codes + 1) for kind in (UINT4, UINT8) if kind.opset <= opset]
    found = []
    for kind, ends, values in tried:
        table = best_words(gaps, ends, most_words=kind.highest + 1)
        if table is not None:
            words = table.encode(gaps, ends)
            found.append(
                WordStream(table=table, words=words, kind=kind, values=values, value_kind=value_kind)
            )
    return min(found, key=lambda stream: stream.n_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseEncoding:
    """Positions and codes of the nonzeros of a tensor.

    Attributes
    ----------
    table : CodebookTable
        The whole tensor.
    positions : ndarray of int64, shape (n_nonzeros,)
        In the scan.
    codes : ndarray of int64, shape (n_nonzeros,)
        Places in `entries` less one.
    entries : ndarray, shape (n_entries,)
        Zero first, then values, the most frequent one first.
    columns : int
        Not 0: the scan goes down the so many columns of the (shape[0], rest) matrix.
    """

    table: CodebookTable
    positions: np.ndarray
    codes: np.ndarray
    entries: np.ndarray
    columns: int
    _streams: dict[bool, WordStream] = field(default_factory=dict)

    @property
    def lowest_opset(self) -> int:
        """First opset at which it can be written."""
        return LOWEST_OPSET

    @property
    def best_opset(self) -> int:
        """Opset 21 where integers of 4 bits help."""
        return UINT4_OPSET if self.n_bytes(UINT4_OPSET) < self.n_bytes(LOWEST_OPSET) else LOWEST_OPSET

    def n_bytes(self, opset: int) -> int:
        """Bytes of words, values and tables, if it shares its chain with no other tensor."""
        return self._stream(opset).n_bytes + self.side_bytes

    @property
    def side_bytes(self) -> int:
        """Bytes of what no other tensor shares."""
        scales = 0 if self.table.scales is None else self.table.scales.nbytes
        return int(self.entries.nbytes + scales)

    @property
    def n_elements(self) -> int:
        """Number of elements, zeros included."""
        return int(self.table.indices.size)

    def label(self, opset: int) -> str:
        """Name the types of gaps and values, if it shares its chain with no other tensor."""
        return self._stream(opset).label

    def write(self, rewrite: GraphRewrite, name: str) -> None:
        """Decode the tensor before all other nodes."""
        self.write_together(rewrite, {name: self})

    @staticmethod
    def write_together(
        rewrite: GraphRewrite, members: Mapping[str, SparseEncoding]
    ) -> dict[str, tuple[str, int]]:
        """Decode tensors before all other nodes, in as few chains as suits them; return labels and bytes."""
        written: dict[str, tuple[str, int]] = {}
        for group in _groups(members):
            written |= _write_group(rewrite, group)
        return written

    def _stream(self, opset: int) -> WordStream:
        narrow = opset >= UINT4_OPSET
        if narrow not in self._streams:
            gaps = np.diff(self.positions, prepend=-1) - 1
            self._streams[narrow] = stream_of(gaps, self.codes, opset)
        return self._streams[narrow]


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
    zeros = np.flatnonzero(table.entries.view(f"<u{table.entries.itemsize}") == 0)
    if not zeros.size:
        return "no zeros"
    zero = int(zeros[0])
    if (table.indices == zero).all():
        return "nothing but zeros"
    found = min((_encoding(table, zero, columns) for columns in _scans(table)), key=_scan_cost)
    if found.n_bytes(found.lowest_opset) + NODE_BYTES * _N_NODES >= plain_bytes:
        return "too few zeros to be smaller"
    return found


def _scan_cost(encoding: SparseEncoding) -> int:
    """Return about how many words a scan takes."""
    gaps = np.diff(encoding.positions, prepend=-1) - 1
    return int((gaps // _LONGEST_RUN).sum()) + (_WORTHWHILE_WORDS if encoding.columns else 0)


def _scans(table: CodebookTable) -> list[int]:
    """Return the scans to try: 0 for C order, else the number of columns."""
    shape = table.indices.shape
    if len(shape) < 2 or table.columns or min(shape[0], table.indices.size // shape[0]) < 2:
        return [0]
    return [0, table.indices.size // shape[0]]


def _encoding(table: CodebookTable, zero: int, columns: int) -> SparseEncoding:
    """Split a table into positions and codes along one scan."""
    indices = table.indices.reshape(-1, columns).T if columns else table.indices
    flat = indices.reshape(-1)
    positions = np.flatnonzero(flat != zero)
    counts = np.bincount(flat[positions], minlength=table.entries.size)
    order = np.argsort(-counts, kind="stable")
    order = order[counts[order] > 0]
    ranks = np.zeros(table.entries.size, np.int64)
    ranks[order] = np.arange(order.size)
    return SparseEncoding(
        table=table,
        positions=positions,
        codes=ranks[flat[positions]],
        entries=table.entries[np.append(zero, order)],
        columns=columns,
    )


def _groups(members: Mapping[str, SparseEncoding]) -> Iterator[dict[str, SparseEncoding]]:
    """Yield tensors that share a chain: with about as many values each, and not too large together."""
    kinds: dict[int, dict[str, SparseEncoding]] = {}
    for name, encoding in members.items():
        n_codes = encoding.entries.size - 1
        key = 0 if n_codes <= _NARROW_CODES else n_codes.bit_length()
        kinds.setdefault(key, {})[name] = encoding
    for kind in kinds.values():
        group: dict[str, SparseEncoding] = {}
        for name, encoding in kind.items():
            together = encoding.n_elements + sum(member.n_elements for member in group.values())
            if group and together > SHARED_ELEMENTS:
                yield group
                group = {}
            group[name] = encoding
        yield group


def _write_group(rewrite: GraphRewrite, group: dict[str, SparseEncoding]) -> dict[str, tuple[str, int]]:
    """Write tensors that share a chain; return labels and bytes."""
    sizes = [encoding.n_elements for encoding in group.values()]
    starts = np.cumsum([0, *sizes[:-1]])
    parts = [e.positions + start for e, start in zip(group.values(), starts, strict=True)]
    codes = np.concatenate([encoding.codes for encoding in group.values()])
    gaps = np.diff(np.concatenate(parts), prepend=-1) - 1
    stream = stream_of(gaps, codes, rewrite.opset)
    pieces = _pieces(rewrite, _numbers(rewrite, stream, sum(sizes)), sizes)
    for (name, encoding), piece in zip(group.items(), pieces, strict=True):
        _look_up(rewrite, encoding, piece, name)
    nonzeros = np.cumsum([0, *(part.size for part in parts)])
    shares = np.diff(stream.n_bytes * nonzeros // nonzeros[-1])
    return {
        name: (stream.label, int(share) + encoding.side_bytes)
        for (name, encoding), share in zip(group.items(), shares, strict=True)
    }


def _numbers(rewrite: GraphRewrite, stream: WordStream, n_elements: int) -> str:
    """Add the nodes that put numbers of values between zeros; return the name of all elements' numbers."""
    wide = DType.INT32 if n_elements < 1 << 31 else DType.INT64
    words = Chain(rewrite, rewrite.add_packed(stream.words, stream.kind))
    places = words.add("Cast", to=INT32)
    ends = Chain(rewrite, places)
    ends.add("Gather", rewrite.add_packed(stream.table.advances(), stream.advance_kind), table_first=True)
    ends.add("Cast", to=ONNX_OF_DTYPE[wide])
    ends.add("CumSum", ends.constant(np.zeros((), "<i4"), DType.INT32))
    ends.add("Sub", ends.constant(np.ones((), wide.storage_dtype), wide))
    is_narrow = stream.values is None or stream.value_kind is not UINT16
    number_type = UINT8.data_type if is_narrow else INT32
    codes = _codes(rewrite, stream, places, number_type)
    numbers = Chain(rewrite, rewrite.add_integers((n_elements,)))
    zero = require_package("onnx").helper.make_tensor("", number_type, [1], [0])
    numbers.add("ConstantOfShape", value=zero)
    numbers.add("ScatterElements", ends.value, codes.value)
    if is_narrow:
        numbers.add("Cast", to=INT32)
    for chain in (words, ends, codes, numbers):
        rewrite.decoders.extend(chain.nodes)
    return numbers.value


def _codes(rewrite: GraphRewrite, stream: WordStream, places: str, number_type: int) -> Chain:
    """Return the nodes that tell what stands where words end: 0 for fillers.

    ONNX Runtime folds no operator whose output has a size that depends on values, so fillers are not left
    out: each word looks up how many that are none came before it.
    """
    if stream.values is None:
        codes = Chain(rewrite, places)
        codes.add("Gather", rewrite.add_packed(stream.table.codes(), UINT8), table_first=True)
        return codes
    has_fillers = stream.words.size > stream.values.size
    stored = np.append(0, stream.values) if has_fillers else stream.values
    values = Chain(rewrite, rewrite.add_packed(stored, stream.value_kind))
    if stream.value_kind.data_type != number_type:
        values.add("Cast", to=number_type)
    if not has_fillers:
        return values
    order = Chain(rewrite, places)
    order.add("Less", order.constant(np.array(stream.table.first_filler, "<i4"), DType.INT32))
    is_value = order.add("Cast", to=INT32)
    order.add("CumSum", order.constant(np.zeros((), "<i4"), DType.INT32))
    order.add("Mul", is_value)
    order.add("Gather", values.value, table_first=True)
    order.nodes[:0] = values.nodes
    return order


def _pieces(rewrite: GraphRewrite, numbers: str, sizes: list[int]) -> list[str]:
    """Cut the numbers of several tensors; return the names of the pieces."""
    if len(sizes) == 1:
        return [numbers]
    names = [rewrite.name() for _ in sizes]
    split: Any = make_node("Split", [numbers, rewrite.add_integers(tuple(sizes))], names[0])
    split.output.extend(names[1:])
    rewrite.decoders.append(split)
    return names


def _look_up(rewrite: GraphRewrite, encoding: SparseEncoding, piece: str, name: str) -> None:
    """Add the nodes that make a tensor of its elements' numbers."""
    chain = Chain(rewrite, piece)
    codebook = chain.constant(np.ascontiguousarray(encoding.entries), encoding.table.dtype)
    chain.add("Gather", codebook, table_first=True)
    shape = encoding.table.indices.shape
    if encoding.columns:
        chain.reshape((encoding.columns, -1))
        chain.add("Transpose", perm=[1, 0])
    if encoding.table.shape is None and (len(shape) != 2 or not encoding.columns):
        chain.reshape(shape)
    finish_table(chain, encoding.table)
    chain.end(name)
