"""Tensors as the writer takes them and as the reader hands them out, still compressed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from .dtypes import DType, dtype_of, storage_bits
from .grouped import GroupedCodebook, GroupedTensor
from .hashing import HashedTensor
from .scales import Scales, are_scales, check_scales, finished_values
from .values import (
    CODEBOOK_DTYPES,
    MAX_AFFINE_K,
    affine_values,
    cast_values,
    is_exact_in,
    round_codebook,
)

__all__ = [
    "CODEBOOK_DTYPES",
    "MAX_AFFINE_K",
    "AffineTensor",
    "Codebook",
    "CodebookTensor",
    "GroupedCodebook",
    "GroupedTensor",
    "HashedTensor",
    "Layout",
    "PackedTensor",
    "RawTensor",
    "Scales",
    "Tensor",
    "ViewSource",
    "ViewTensor",
    "affine_values",
    "are_scales",
    "cast_values",
    "is_exact_in",
    "round_codebook",
]


class Layout(IntEnum):
    """How the elements of a tensor are stored (spec 7)."""

    RAW = 0
    CONSTANT = 1
    DENSE = 2
    SPARSE = 3
    MASK = 4
    VIEW = 5
    HASHED = 6
    RAW_SPARSE = 7


@dataclass(frozen=True, slots=True, kw_only=True)
class Codebook:
    """Reproduction values of a quantizer.

    Attributes
    ----------
    values : ndarray of float32, shape (n_entries,)
        Finite; each exactly representable in `stored_as`.
    stored_as : DType
        FLOAT32, FLOAT16 or BFLOAT16.
    """

    values: np.ndarray
    stored_as: DType = DType.FLOAT32

    def __post_init__(self) -> None:
        if self.values.dtype != np.float32 or self.values.ndim != 1 or self.values.size == 0:
            raise ValueError("codebook values must be a non-empty one-dimensional float32 array")
        if not np.isfinite(self.values).all():
            raise ValueError("codebook values must be finite")
        if self.stored_as not in CODEBOOK_DTYPES:
            raise ValueError(
                f"a codebook is stored as float32, float16 or bfloat16, not {self.stored_as.label}"
            )
        if not is_exact_in(self.values, self.stored_as):
            raise ValueError(f"codebook values are not exactly representable in {self.stored_as.label}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTensor:
    """Elements kept bit for bit.

    Attributes
    ----------
    bits : ndarray
        In ``dtype.storage_dtype`` (bfloat16 as uint16 bits), any shape.
    dtype : DType
    """

    bits: np.ndarray
    dtype: DType

    @classmethod
    def from_array(cls, array: np.ndarray) -> RawTensor:
        """Wrap a NumPy array (ml_dtypes bfloat16 allowed)."""
        return cls(bits=storage_bits(array), dtype=dtype_of(array))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.bits.shape

    def decode(self) -> np.ndarray:
        """Return the elements in the storage dtype."""
        return self.bits


@dataclass(frozen=True, slots=True, kw_only=True)
class CodebookTensor:
    """One codebook index for each element.

    Attributes
    ----------
    indices : ndarray of an unsigned integer dtype, shape of the tensor, values < n_entries
    codebook : Codebook
        The same object in several tensors is stored once.
    dtype : DType
        A floating-point type.
    scales : Scales or None
    """

    indices: np.ndarray
    codebook: Codebook
    dtype: DType = DType.FLOAT32
    scales: Scales | None = None

    def __post_init__(self) -> None:
        if self.indices.dtype.kind != "u":
            raise TypeError("codebook indices must be unsigned integers")
        if self.indices.size and int(self.indices.max()) >= self.codebook.values.size:
            raise ValueError("a codebook index lies beyond the codebook")
        if not self.dtype.is_float:
            raise ValueError("codebook tensors are floating point; use AffineTensor for integers")
        check_scales(self.scales, self.indices.size, self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.indices.shape

    def decode(self) -> np.ndarray:
        """Return the elements in the storage dtype."""
        if self.scales is not None:
            return finished_values(self.codebook.values[self.indices], self.scales, self.dtype)
        elements: np.ndarray = cast_values(self.codebook.values, self.dtype)[self.indices]
        return elements


@dataclass(frozen=True, slots=True, kw_only=True)
class AffineTensor:
    """Elements ``step * k + offset`` with integer k (spec 6.2).

    Attributes
    ----------
    k : ndarray of int32, shape of the tensor, |k| < 2**24
    step, offset : float
        Exactly representable in float32.
    dtype : DType
        Integer types need step 1 and offset 0.
    scales : Scales or None
        With step 1 and offset 0 these are the steps of a uniform quantizer, one for each channel.
    """

    k: np.ndarray
    step: float
    offset: float = 0.0
    dtype: DType = DType.FLOAT32
    scales: Scales | None = None

    def __post_init__(self) -> None:
        if self.k.dtype != np.int32:
            raise TypeError("affine k must be int32")
        if self.k.size and int(np.abs(self.k.astype(np.int64)).max()) >= MAX_AFFINE_K:
            raise ValueError("affine k must stay below 2**24 in magnitude")
        for name, number in (("step", self.step), ("offset", self.offset)):
            if not math.isfinite(number) or float(np.float32(number)) != number:
                raise ValueError(f"affine {name} must be a finite float32 number")
        if self.dtype is DType.BOOL or (not self.dtype.is_float and (self.step, self.offset) != (1.0, 0.0)):
            raise ValueError("integer affine tensors need an integer dtype, step 1 and offset 0")
        check_scales(self.scales, self.k.size, self.dtype)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return self.k.shape

    def decode(self) -> np.ndarray:
        """Return the elements in the storage dtype."""
        return finished_values(affine_values(self.k, self.step, self.offset), self.scales, self.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewSource:
    """Rows `start:stop` on axis 0 of an earlier tensor that is no view itself."""

    name: str
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewTensor:
    """Elements of other tensors: rows concatenated on axis 0, axes permuted, then reshaped (spec 7.6).

    Attributes
    ----------
    sources : tuple of ViewSource
        All of one dtype and one shape beyond axis 0.
    permutation : tuple of int
        As in ``numpy.transpose``; its length is the sources' rank.
    shape : tuple of int
        Final shape.
    """

    sources: tuple[ViewSource, ...]
    permutation: tuple[int, ...]
    shape: tuple[int, ...]

    def assemble(self, decoded: Mapping[str, np.ndarray]) -> np.ndarray:
        """Build the view from its decoded sources."""
        rows = [decoded[s.name][s.start : s.stop] for s in self.sources]
        joined = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=0)
        return np.ascontiguousarray(joined.transpose(self.permutation)).reshape(self.shape)


Tensor = RawTensor | CodebookTensor | AffineTensor | GroupedTensor | ViewTensor | HashedTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedTensor:
    """A stored tensor with its entropy coding undone and its values still quantized.

    This is what engines compute from. Exactly one of `codebook` and (`step`, `offset`) describes
    the values: a codebook tensor has unsigned `symbols`, an affine one int32 `symbols` (k).

    Attributes
    ----------
    name : str
    dtype : DType
    shape : tuple of int
    layout : Layout
        DENSE, SPARSE or MASK.
    symbols : ndarray, shape (n_stored,)
        One for each stored element, in ascending C-order position.
    positions : ndarray of int64, shape (n_stored,), or None
        Ascending C-order positions of the stored elements; all others are zero. None: every element is
        stored.
    codebook : ndarray of float32, shape (n_entries,), or None
    step, offset : float
        Used when `codebook` is None.
    scales : Scales or None
        Factors of the elements, which codebook, step and offset leave out.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    layout: Layout
    symbols: np.ndarray
    positions: np.ndarray | None
    codebook: np.ndarray | None
    step: float = 0.0
    offset: float = 0.0
    scales: Scales | None = None

    @property
    def density(self) -> float:
        """Stored elements over all elements; 1.0 for an empty tensor."""
        n_elements = math.prod(self.shape)
        return 1.0 if n_elements == 0 else self.symbols.size / n_elements

    def values(self) -> np.ndarray:
        """Return the stored elements as ``dtype.storage_dtype``, shape (n_stored,)."""
        if self.codebook is not None and self.scales is None:
            stored: np.ndarray = cast_values(self.codebook, self.dtype)[self.symbols]
            return stored
        if self.codebook is not None:
            values: np.ndarray = self.codebook[self.symbols]
        else:
            values = affine_values(self.symbols, self.step, self.offset)
        if self.scales is not None and self.positions is not None:
            with np.errstate(over="ignore"):
                return cast_values(values * self.scales.at(self.positions), self.dtype)
        return finished_values(values.reshape(-1), self.scales, self.dtype)

    def decode(self) -> np.ndarray:
        """Return the whole tensor in the storage dtype."""
        stored = self.values()
        if self.positions is None:
            return stored.reshape(self.shape)
        dense = np.zeros(math.prod(self.shape), dtype=stored.dtype)
        dense[self.positions] = stored
        return dense.reshape(self.shape)
