"""Weights of binary and ternary networks: signs times a factor for the tensor or for each channel."""

from __future__ import annotations

import math

import numpy as np

from nqformat.dtypes import DType, dtype_of
from nqformat.tensor import CODEBOOK_DTYPES, Codebook, CodebookTensor, Scales, Tensor, is_exact_in

from .distinct import bits_to_values, unsigned_bits
from .lossless import exact_codebook_tensor

__all__ = ["MIN_SIGNS", "few_valued_tensor"]

MIN_SIGNS = 8
"""Fewest elements of a channel for which its sharing one magnitude is no accident."""

_TERNARY = 3


def few_valued_tensor(array: np.ndarray) -> Tensor | None:
    """Return a float tensor exactly if it is binary or ternary, by itself or channel by channel; else None.

    That is: it has two or three distinct values, or all nonzero elements of each index of one axis have the
    same magnitude. Negative zeros are told from zeros, so that tensors that hold them count as neither.

    Source : Courbariaux, Bengio, David 2015, "BinaryConnect"; Rastegari, Ordonez, Redmon, Farhadi 2016,
    "XNOR-Net" (a factor for each output)

    Examples
    --------
    >>> signs = np.sign(np.random.default_rng(0).normal(size=(16, 40))).astype(np.float32)
    >>> tensor = few_valued_tensor(signs * np.linspace(0.1, 0.9, 16, dtype=np.float32)[:, None])
    >>> tensor.codebook.values.tolist(), tensor.scales.values.size
    ([-1.0, 1.0], 16)
    """
    dtype = dtype_of(array)
    if not dtype.is_float or array.size < MIN_SIGNS:
        return None
    few = exact_codebook_tensor(array, _TERNARY)
    if few is not None:
        return few if few.codebook.values.size > 1 else None
    if array.ndim < 2:
        return None
    values = bits_to_values(unsigned_bits(array), dtype)
    if (
        values.dtype != np.float32
        or (np.signbit(values) & (values == 0)).any()
        or not np.isfinite(values).all()
    ):
        return None
    for axis in dict.fromkeys((0, 1, array.ndim - 1)):
        found = _signs_along(values, axis, dtype)
        if found is not None:
            return found
    return None


def _signs_along(values: np.ndarray, axis: int, dtype: DType) -> Tensor | None:
    """Return signs with a scale for each index of an axis, if that is what the values are."""
    n_channels = values.shape[axis]
    if math.prod(values.shape) < MIN_SIGNS * n_channels:
        return None
    first = np.abs(values.take(0, axis=axis))
    if ((first != 0) & (first != first.max())).any():
        return None
    magnitudes = np.abs(values)
    factors = magnitudes.max(axis=tuple(i for i in range(values.ndim) if i != axis))
    spread = factors.reshape([n_channels if i == axis else 1 for i in range(values.ndim)])
    if not ((magnitudes == spread) | (magnitudes == 0)).all():
        return None
    entries, indices = np.unique(np.sign(values), return_inverse=True)
    factors = np.where(factors == 0, factors.max(), factors).astype(np.float32)
    stored_as = next(d for d in reversed(CODEBOOK_DTYPES) if is_exact_in(factors, d))
    return CodebookTensor(
        indices=indices.reshape(values.shape).astype(np.uint8),
        codebook=Codebook(values=entries.astype(np.float32), stored_as=DType.FLOAT16),
        dtype=dtype,
        scales=Scales.along_axis(factors, values.shape, axis, stored_as),
    )
