"""Stored numbers of quantized tensors: what they stand for, and in what order (spec 6.2, 7.4)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .errors import CorruptError
from .tensor import MAX_AFFINE_K, Layout
from .tensor_records import AffineOrder, AffineRule, TensorRecord


def index_dtype(n_entries: int) -> type[np.unsignedinteger[Any]]:
    """Smallest unsigned dtype for indices of `n_entries` entries."""
    if n_entries <= 1 << 8:
        return np.uint8
    return np.uint16 if n_entries <= 1 << 16 else np.uint32


def check_indices(record: TensorRecord, indices: np.ndarray, n_entries: int) -> None:
    """Raise CorruptError if an index lies beyond the codebook."""
    if indices.size and int(indices.max()) >= n_entries:
        raise CorruptError(
            f"tensor {record.name!r} has an index beyond its codebook of {n_entries} entries",
            section="TENSOR",
        )


def affine_k(record: TensorRecord, rule: AffineRule, stored: np.ndarray) -> np.ndarray:
    """Integers k of stored numbers: int32."""
    k, legal = legal_affine_k(record, rule, stored)
    if not legal.all():
        raise CorruptError(
            f"tensor {record.name!r} has an affine integer beyond 2**24 or its element type", section="TENSOR"
        )
    return k


def legal_affine_k(
    record: TensorRecord, rule: AffineRule, stored: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Integers k of stored numbers as int32, and whether each is allowed (spec 6.2)."""
    k = stored.astype(np.int64)
    if rule.order is AffineOrder.ASCENDING:
        k += rule.k_min
    else:
        if record.layout is not Layout.DENSE:
            k += 1
        k = (k >> 1) ^ -(k & 1)
    legal = np.abs(k) < MAX_AFFINE_K
    if record.dtype is not None and not record.dtype.is_float:
        info = np.iinfo(record.dtype.storage_dtype.name)
        legal &= (k >= info.min) & (k <= info.max)
    return k.astype(np.int32), legal


def row_order(
    shape: tuple[int, ...], stored: np.ndarray, positions: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray | None]:
    """Turn a column scan of the (shape[0], rest) matrix into C order (spec 7.4)."""
    n_rows, n_columns = shape[0], math.prod(shape[1:])
    if positions is None:
        return np.ascontiguousarray(stored.reshape(n_columns, n_rows).T).reshape(-1), None
    row_major = (positions % n_rows) * n_columns + positions // n_rows if positions.size else positions
    order = np.argsort(row_major, kind="stable")
    return stored[order], row_major[order]
