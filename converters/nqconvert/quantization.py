"""The quantization stage: which tensors a quantizer gets, and why the others stay exact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nqformat.dtypes import DType, dtype_of, storage_bits
from nqformat.errors import ConversionError
from nqformat.tensor import RawTensor, Tensor, round_codebook

from .presets import ConvertSettings
from .quantizers import get_quantizer
from .quantizers.distinct import without_negative_zeros
from .quantizers.lossless import lossless_tensor
from .quantizers.rate import estimate_bits
from .quantizers.signs import few_valued_tensor

__all__ = ["QuantizedModel", "is_weight", "quantize_tensors"]

MIN_WEIGHTS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModel:
    """Tensors ready to be written.

    Attributes
    ----------
    tensors : dict of str to Tensor
        In the order of the input.
    exact : dict of str to str
        Why a tensor was kept bit for bit (or at its `rest` precision), by name.
    """

    tensors: dict[str, Tensor]
    exact: dict[str, str]


def quantize_tensors(
    tensors: Mapping[str, np.ndarray],
    settings: ConvertSettings,
    sensitivities: Mapping[str, np.ndarray] | None = None,
) -> QuantizedModel:
    """Quantize weights and keep the rest.

    Weights of two or three values, as they are or up to a factor for each channel, are kept exactly whatever
    the method (-0.0 becomes 0.0 unless that is ``none``).

    Raises
    ------
    ConversionError
        If a weight is NaN or infinite and the method is lossy; names the tensor.
    ValueError
        If the method is unknown.
    """
    quantizer = get_quantizer(settings.method)
    if settings.method == "none":
        return _lossless(tensors)
    exact = {name: reason for name, array in tensors.items() if (reason := _reason_exact(array))}
    for name, array in tensors.items():
        _require_finite(name, array)
    few_valued = {
        name: found
        for name, array in tensors.items()
        if name not in exact and (found := few_valued_tensor(without_negative_zeros(array))) is not None
    }
    weights = {name: a for name, a in tensors.items() if name not in exact and name not in few_valued}
    quantized = quantizer(weights, sensitivities, settings.quantizer_settings()) if weights else {}
    for name, tensor in quantized.items():
        if settings.smaller_of_lossless:
            kept = lossless_tensor(tensors[name])
            if estimate_bits(kept) <= estimate_bits(tensor):
                quantized[name] = kept
                exact[name] = "lossless is smaller than quantized"
        if isinstance(quantized[name], RawTensor) and name not in exact:
            exact[name] = "too few weights for a codebook to pay"
    quantized.update(few_valued)
    made = {
        name: quantized[name] if name in quantized else _rest(tensors[name], settings.rest)
        for name in tensors
    }
    return QuantizedModel(tensors=made, exact=exact)


def _lossless(tensors: Mapping[str, np.ndarray]) -> QuantizedModel:
    made = {name: _smallest_exact(array) for name, array in tensors.items()}
    exact = {
        name: "no codebook, zeros or grid found"
        for name, tensor in made.items()
        if isinstance(tensor, RawTensor)
    }
    return QuantizedModel(tensors=made, exact=exact)


def _smallest_exact(array: np.ndarray) -> Tensor:
    """Return the smaller of what the lossless quantizer finds and signs with scales."""
    kept, few = lossless_tensor(array), few_valued_tensor(array)
    return kept if few is None or estimate_bits(kept) <= estimate_bits(few) else few


def is_weight(array: np.ndarray) -> bool:
    """Tell whether a tensor is one that quantizers work on: floating point, a matrix or more, not tiny."""
    return not _reason_exact(array)


def _reason_exact(array: np.ndarray) -> str:
    """Say why a tensor is no weight matrix, or return an empty string."""
    if not dtype_of(array).is_float:
        return f"{array.dtype.name} values are not quantized"
    if array.ndim < 2:
        return "bias, norm or other vector"
    if array.size < MIN_WEIGHTS:
        return f"fewer than {MIN_WEIGHTS} values"
    return ""


def _require_finite(name: str, array: np.ndarray) -> None:
    if not dtype_of(array).is_float:
        return
    values = array.astype(np.float32) if array.dtype.name == "bfloat16" else array
    n_bad = values.size - int(np.count_nonzero(np.isfinite(values)))
    if n_bad:
        raise ConversionError(
            f"tensor {name!r}: {n_bad} of {values.size} values are NaN or infinite; "
            "mend the model, or keep every bit with --preset lossless"
        )


def _rest(array: np.ndarray, precision: str) -> Tensor:
    """Keep a small tensor, float32 ones at the wanted precision."""
    if dtype_of(array) is not DType.FLOAT32 or precision == "float32":
        return lossless_tensor(array)
    rounded = round_codebook(storage_bits(array), DType.FLOAT16 if precision == "float16" else DType.BFLOAT16)
    return lossless_tensor(rounded if np.isfinite(rounded).all() else array)
