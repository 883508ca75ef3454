"""Checks of tensors that are made of others against these (spec 7.6, 7.7)."""

from __future__ import annotations

import math

from .errors import CorruptError
from .hashing import MAX_BUCKETS
from .tensor import Layout
from .tensor_records import HashedFields, TensorRecord, ViewFields


def check_view(record: TensorRecord, earlier: list[TensorRecord]) -> None:
    """Check a view against its sources.

    Raises
    ------
    CorruptError
        If a source is itself made of others, ranges leave a source, or shapes, dtypes or counts differ.
    """
    fields = record.fields
    assert isinstance(fields, ViewFields)
    where = f"view {record.name!r}"
    first = earlier[fields.parts[0].tensor]
    n_rows = 0
    for part in fields.parts:
        source = earlier[part.tensor]
        _check_source(where, record, source)
        if not source.shape or source.shape[1:] != first.shape[1:]:
            raise CorruptError(f"{where} joins tensors of unlike shape", section="TENSOR")
        if part.start + part.n_rows > source.shape[0]:
            raise CorruptError(f"{where} reaches beyond tensor {source.name!r}", section="TENSOR")
        n_rows += part.n_rows
    if (
        len(fields.permutation) != len(first.shape)
        or n_rows * math.prod(first.shape[1:]) != record.n_elements
    ):
        raise CorruptError(f"{where} does not have the shape of its sources", section="TENSOR")


def check_hashed(record: TensorRecord, earlier: list[TensorRecord]) -> None:
    """Check a hashed tensor against the tensor that holds its values.

    Raises
    ------
    CorruptError
        If that is itself made of others, of another dtype, or without elements or with too many.
    """
    fields = record.fields
    assert isinstance(fields, HashedFields)
    source = earlier[fields.tensor]
    where = f"hashed tensor {record.name!r}"
    _check_source(where, record, source)
    if not 1 <= source.n_elements <= MAX_BUCKETS:
        raise CorruptError(f"{where} takes its values from {source.n_elements}", section="TENSOR")


def _check_source(where: str, record: TensorRecord, source: TensorRecord) -> None:
    if source.layout in (Layout.VIEW, Layout.HASHED):
        raise CorruptError(f"{where} refers to another tensor that does so", section="TENSOR")
    if source.dtype != record.dtype:
        raise CorruptError(f"{where} refers to a tensor of another dtype", section="TENSOR")
