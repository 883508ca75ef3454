"""Sparse matrices for products with vectors side by side: a feature's values of all vectors are a plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .plane_layout import PlaneLayout
from .planes import SparsePlanes, Taps, Window, pack_sparse_planes

_MOST_SYMBOLS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedColumns:
    """A sparse matrix for products with a fixed number of vectors.

    Attributes
    ----------
    label : str
    layout : PlaneLayout
        Of a feature: one row with an element for each vector.
    weights : SparsePlanes
    """

    is_int8: ClassVar[bool] = False

    label: str
    layout: PlaneLayout
    weights: SparsePlanes

    @property
    def weight_bytes(self) -> int:
        """Bytes of all arrays."""
        return self.weights.weight_bytes


def pack_columns(
    nonzeros: tuple[np.ndarray, np.ndarray, np.ndarray],
    codebook: np.ndarray,
    shape: tuple[int, int],
    n_vectors: int,
) -> PackedColumns | None:
    """Pack the nonzeros of a matrix; None if the codebook has too many entries.

    Parameters
    ----------
    nonzeros : tuple of ndarray
        Rows, columns and symbols.
    codebook : ndarray of float32
    shape : (int, int)
    n_vectors : int
    """
    if codebook.size > _MOST_SYMBOLS:
        return None
    rows, columns, symbols = nonzeros
    layout = PlaneLayout(height=1, width=n_vectors)
    weights = pack_sparse_planes(
        rows=rows,
        columns=columns,
        symbols=symbols,
        codebook=codebook,
        n_rows=shape[0],
        taps=Taps.of(Window(kernel=(1, 1)), layout, shape[1]),
    )
    density = rows.size / max(1, shape[0] * shape[1])
    label = f"sparse planes, {density:.1%} of {shape[0]}x{shape[1]}, palette of {codebook.size}"
    return PackedColumns(label=label, layout=layout, weights=weights)
