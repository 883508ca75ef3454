"""Stored tensors with other values in the same form, so that they take as many bytes."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from nqconvert.quantizers.lossless import lossless_tensor
from nqformat.dtypes import DType
from nqformat.tensor import (
    MAX_AFFINE_K,
    AffineTensor,
    Codebook,
    CodebookTensor,
    RawTensor,
    Tensor,
    is_exact_in,
    round_codebook,
)

__all__ = [
    "is_free_vector",
    "is_plain",
    "precision_of",
    "scaled",
    "with_changes",
    "with_entries",
    "with_values",
]


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is a grid through zero or a codebook of float32 elements, without scales."""
    if isinstance(tensor, AffineTensor):
        return tensor.scales is None and tensor.offset == 0 and tensor.dtype is DType.FLOAT32
    return isinstance(tensor, CodebookTensor) and tensor.scales is None and tensor.dtype is DType.FLOAT32


def is_free_vector(tensor: Tensor) -> bool:
    """Whether other values of a vector take as many bytes: on a grid, or kept element for element."""
    shape = tensor.shape
    if not shape or max(shape) != np.prod(shape) or max(shape) < 2:
        return False
    if isinstance(tensor, AffineTensor):
        return is_plain(tensor)
    return (
        isinstance(tensor, RawTensor)
        and tensor.dtype is DType.FLOAT32
        and bool(np.isfinite(tensor.bits).all())
    )


def precision_of(values: np.ndarray) -> DType:
    """Return the shortest of bfloat16, float16 and float32 that holds float32 values exactly.

    Examples
    --------
    >>> precision_of(np.float32([1.0, 0.1])).label
    'float32'
    """
    return next((d for d in (DType.BFLOAT16, DType.FLOAT16) if is_exact_in(values, d)), DType.FLOAT32)


def with_changes(tensors: Mapping[str, Tensor], changes: dict[str, Tensor]) -> Mapping[str, Tensor]:
    """Return tensors some of which are replaced, in their order; what lies in a file stays there.

    Examples
    --------
    >>> tensors = {name: RawTensor.from_array(np.zeros(2, np.float32)) for name in "ab"}
    >>> list(with_changes(tensors, {"b": tensors["a"]}))
    ['a', 'b']
    """
    return ChainMap(changes, tensors)  # type: ignore[arg-type]


def with_values(tensor: Tensor, values: np.ndarray) -> Tensor:
    """Return a vector with other values, rounded to its grid or its precision.

    Parameters
    ----------
    tensor : Tensor
        For which :func:`is_free_vector` holds.
    values : ndarray of floats, shape of the tensor
    """
    if isinstance(tensor, AffineTensor):
        k = np.clip(np.rint(np.float64(values) / tensor.step), 1 - MAX_AFFINE_K, MAX_AFFINE_K - 1)
        return replace(tensor, k=k.astype(np.int32))
    assert isinstance(tensor, RawTensor)
    return lossless_tensor(round_codebook(values.astype(np.float32), precision_of(tensor.bits)))


def with_entries(tensor: CodebookTensor, values: np.ndarray) -> CodebookTensor:
    """Return a tensor with other entries in its codebook's order, rounded to its dtype, each kept once."""
    rounded = round_codebook(values.astype(np.float32), tensor.codebook.stored_as)
    finite = np.where(np.isfinite(rounded), rounded, tensor.codebook.values) + np.float32(0)
    entries, places = np.unique(finite, return_inverse=True)
    codebook = Codebook(values=entries, stored_as=tensor.codebook.stored_as)
    return replace(tensor, indices=places.astype(tensor.indices.dtype)[tensor.indices], codebook=codebook)


def scaled(tensor: Tensor, factor: float) -> Tensor:
    """Return a tensor for which :func:`is_plain` holds times a factor."""
    if isinstance(tensor, AffineTensor):
        return replace(tensor, step=float(np.float32(tensor.step * factor)))
    assert isinstance(tensor, CodebookTensor)
    return with_entries(tensor, tensor.codebook.values * np.float32(factor))
