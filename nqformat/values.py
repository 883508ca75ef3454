"""Values of quantized elements: rounding, casts and the affine rule (spec 6)."""

from __future__ import annotations

import numpy as np

from .dtypes import DType, bfloat16_to_float32, float32_to_bfloat16

MAX_AFFINE_K = 1 << 24
CODEBOOK_DTYPES = (DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16)


def cast_values(values: np.ndarray, dtype: DType) -> np.ndarray:
    """Round float32 reconstruction values once to the tensor's dtype (spec 6.3).

    Returns
    -------
    ndarray of ``dtype.storage_dtype`` (bfloat16 as uint16 bits)
    """
    if dtype is DType.BFLOAT16:
        return float32_to_bfloat16(values)
    with np.errstate(over="ignore"):
        return values.astype(dtype.storage_dtype, copy=False)


def round_codebook(values: np.ndarray, stored_as: DType) -> np.ndarray:
    """Round values to what `stored_as` can hold, returned as float32."""
    if stored_as is DType.FLOAT16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    if stored_as is DType.BFLOAT16:
        return bfloat16_to_float32(float32_to_bfloat16(values))
    return values.astype(np.float32)


def is_exact_in(values: np.ndarray, stored_as: DType) -> bool:
    """Whether `stored_as` (float32, float16 or bfloat16) holds float32 `values` bit for bit."""
    return np.array_equal(round_codebook(values, stored_as).view(np.uint32), values.view(np.uint32))


def affine_values(k: np.ndarray, step: float, offset: float) -> np.ndarray:
    """Return float32(float64(step) * k + float64(offset)), infinite beyond float32 (spec 6.2, 6.3)."""
    with np.errstate(over="ignore"):
        return (np.float64(step) * k.astype(np.float64) + np.float64(offset)).astype(np.float32)
