"""Codebooks by group and codebooks of vectors (spec 6.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .dtypes import DType
from .scales import Scales, check_scales, finished_values
from .values import CODEBOOK_DTYPES, is_exact_in


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedCodebook:
    """Codebooks of equal shape for the groups of a tensor.

    Attributes
    ----------
    values : ndarray of float32, shape (groups, entries, width)
        Finite; each exactly representable in `stored_as`. An entry is a vector of `width` elements.
    stored_as : DType
        FLOAT32, FLOAT16 or BFLOAT16.
    """

    values: np.ndarray
    stored_as: DType = DType.FLOAT32

    def __post_init__(self) -> None:
        if self.values.dtype != np.float32 or self.values.ndim != 3 or self.values.size == 0:
            raise ValueError("grouped codebook values must be a non-empty three-dimensional float32 array")
        if not np.isfinite(self.values).all():
            raise ValueError("codebook values must be finite")
        if self.stored_as not in CODEBOOK_DTYPES or not is_exact_in(self.values, self.stored_as):
            raise ValueError(f"codebook values are not exactly representable in {self.stored_as.label}")

    @property
    def groups(self) -> int:
        """Number of codebooks."""
        return int(self.values.shape[0])

    @property
    def entries(self) -> int:
        """Entries of each codebook."""
        return int(self.values.shape[1])

    @property
    def width(self) -> int:
        """Elements of an entry."""
        return int(self.values.shape[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupedTensor:
    """One index for each unit of `width` consecutive elements, into the codebook of the unit's group.

    Unit u has group ``(u // span) % groups``. With width 1, units are elements in C order; else they follow
    each other in the scan, and the last may reach beyond the elements.

    Attributes
    ----------
    indices : ndarray of an unsigned integer dtype, shape (n_units,), values < entries
    shape : tuple of int
    codebook : GroupedCodebook
        The same object in several tensors is stored once.
    span : int
        Consecutive units of one group.
    column_scan : bool
        Units go down the columns of the (shape[0], rest) matrix; only with a width above 1.
    dtype : DType
        A floating-point type.
    scales : Scales or None

    Examples
    --------
    >>> book = GroupedCodebook(values=np.float32([[[1], [2]], [[10], [20]]]))
    >>> tensor = GroupedTensor(indices=np.uint8([0, 1, 1, 0]), shape=(2, 2), codebook=book, span=2)
    >>> tensor.decode().tolist()
    [[1.0, 2.0], [20.0, 10.0]]
    """

    indices: np.ndarray
    shape: tuple[int, ...]
    codebook: GroupedCodebook
    span: int = 1
    column_scan: bool = False
    dtype: DType = DType.FLOAT32
    scales: Scales | None = None

    def __post_init__(self) -> None:
        if self.indices.dtype.kind != "u" or self.indices.ndim != 1:
            raise TypeError("grouped indices must be a one-dimensional unsigned array")
        n_elements, width = math.prod(self.shape), self.codebook.width
        if self.indices.size != n_units(n_elements, width):
            raise ValueError(f"{self.indices.size} indices for {n_elements} elements in units of {width}")
        if self.indices.size and int(self.indices.max()) >= self.codebook.entries:
            raise ValueError("a codebook index lies beyond the codebook")
        if not self.dtype.is_float:
            raise ValueError("codebook tensors are floating point")
        if self.column_scan and (width == 1 or len(self.shape) < 2):
            raise ValueError("a column scan needs entries of several elements and two dimensions")
        if self.span < 1:
            raise ValueError(f"a group must span at least one unit, not {self.span}")
        check_scales(self.scales, n_elements, self.dtype)

    def groups_of(self, units: np.ndarray | None = None) -> np.ndarray:
        """Return the group of some units (None: all): int64."""
        return groups_of(units, self.indices.size, self.span, self.codebook.groups)

    def decode(self) -> np.ndarray:
        """Return the elements in the storage dtype."""
        units = self.codebook.values[self.groups_of(), self.indices]
        elements = elements_of(units, self.shape, column_scan=self.column_scan)
        return finished_values(elements, self.scales, self.dtype)


def n_units(n_elements: int, width: int) -> int:
    """Units of `width` elements that hold `n_elements`."""
    return -(-n_elements // width)


def groups_of(units: np.ndarray | None, n_all: int, span: int, groups: int) -> np.ndarray:
    """Return the group of units (None: all `n_all`), int64 (spec 6.1)."""
    if groups == 1:
        return np.zeros(n_all if units is None else units.size, dtype=np.int64)
    numbers = np.arange(n_all) if units is None else units
    found: np.ndarray = numbers // span % groups
    return found


def elements_of(units: np.ndarray, shape: tuple[int, ...], *, column_scan: bool) -> np.ndarray:
    """Lay units of shape (n_units, width) out as a tensor."""
    scan = units.reshape(-1)[: math.prod(shape)]
    if not column_scan or scan.size == 0:
        return scan.reshape(shape)
    return np.ascontiguousarray(scan.reshape(-1, shape[0]).T).reshape(shape)
