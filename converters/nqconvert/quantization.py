"""The quantization stage: which tensors a quantizer gets, and why the others stay exact."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from nqformat.dtypes import DType, dtype_of, storage_bits
from nqformat.errors import ConversionError
from nqformat.tensor import RawTensor, Tensor, round_codebook

from .memory import return_freed_memory
from .obs.surgeon import Operation, Surgeon
from .presets import ConvertSettings
from .quantizers import Quantizer, get_quantizer
from .quantizers.distinct import without_negative_zeros
from .quantizers.lossless import lossless_tensor
from .quantizers.rate import estimate_bits
from .quantizers.signs import few_valued_tensor
from .tensor_spool import TensorSpool

__all__ = ["QuantizedModel", "continuous_weights", "is_weight", "quantize_tensors"]

MIN_WEIGHTS = 64
_FEW_VALUES = 256
_LARGE_BYTES = 1 << 20
_WITHOUT_HESSIAN = "kmeans"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizedModel:
    """Tensors ready to be written.

    Attributes
    ----------
    tensors : mapping of str to Tensor
        In the order of the input. Numbers of large tensors may lie in a temporary file.
    exact : dict of str to str
        Why a tensor was kept bit for bit (or at its `rest` precision), by name.
    loss : float or None
        Predicted rise of the loss (method ``obs``).
    notes : tuple of str
        What repairs did or could not do.
    """

    tensors: Mapping[str, Tensor]
    exact: dict[str, str]
    loss: float | None = None
    notes: tuple[str, ...] = ()


def quantize_tensors(
    tensors: Mapping[str, np.ndarray],
    settings: ConvertSettings,
    sensitivities: Mapping[str, np.ndarray] | None = None,
    surgeon: Surgeon | None = None,
    *,
    sequential: bool = False,
) -> QuantizedModel:
    """Quantize weights and keep the rest.

    Weights of two or three values, as they are or up to a factor for each channel, are kept exactly whatever
    the method (-0.0 becomes 0.0 unless that is ``none``). Method ``obs`` takes what `surgeon` makes of its
    layers and their biases, with `sequential` for inputs that are quantized already; other weights have exact
    k-means.

    Raises
    ------
    ConversionError
        If a weight is NaN or infinite and the method is lossy; names the tensor.
    ValueError
        If the method is unknown.
    """
    operation = (
        surgeon.operate(settings.rate_penalty, settings.density, sequential=sequential)
        if surgeon and settings.method == "obs"
        else None
    )
    quantizer = get_quantizer(_WITHOUT_HESSIAN if operation else settings.method)
    if settings.method == "none":
        return _lossless(tensors)
    exact = {name: reason for name, array in tensors.items() if (reason := _reason_exact(array))}
    settled = TensorSpool()
    for name, array in tensors.items():
        _require_finite(name, array)
        if name not in exact and (found := few_valued_tensor(without_negative_zeros(array))) is not None:
            settled.add(name, found)
        elif operation and name in operation.tensors:
            settled.add(name, operation.tensors[name])
    if operation:
        for name, tensor in _smaller_biases(operation, tensors, settings.rest).items():
            settled.add(name, tensor)
            exact.pop(name, None)
    weights = {n: array for n, array in tensors.items() if n not in exact and n not in settled}
    quantized = _quantized(weights, sensitivities, settings, quantizer)
    made = TensorSpool()
    for name, array in tensors.items():
        if name in settled:
            made.add(name, settled[name])
        elif name in exact:
            made.add(name, _rest(array, settings.rest))
        else:
            tensor, reason = _smaller(array, next(quantized), settings)
            made.add(name, tensor)
            if reason:
                exact[name] = reason
    if operation is None:
        return QuantizedModel(tensors=made, exact=exact)
    return QuantizedModel(tensors=made, exact=exact, loss=operation.loss, notes=operation.notes)


def _quantized(
    weights: Mapping[str, np.ndarray],
    sensitivities: Mapping[str, np.ndarray] | None,
    settings: ConvertSettings,
    quantizer: Quantizer,
) -> Iterator[Tensor]:
    """Yield each weight quantized: one after the other where they have nothing in common, else all at once.

    Tensors of one pool share a codebook, and sensitivities have their unit in common.
    """
    if settings.scope == "global" or sensitivities is not None:
        yield from (
            quantizer(weights, sensitivities, settings.quantizer_settings()) if weights else {}
        ).values()
        return
    for name, array in weights.items():
        yield quantizer({name: array}, None, settings.quantizer_settings())[name]
        if array.nbytes >= _LARGE_BYTES:
            return_freed_memory()


def _smaller(array: np.ndarray, quantized: Tensor, settings: ConvertSettings) -> tuple[Tensor, str]:
    """Return a quantized tensor or what keeps its bits, and why that was taken."""
    if settings.smaller_of_lossless:
        kept = lossless_tensor(array)
        if estimate_bits(kept) <= estimate_bits(quantized):
            return kept, "lossless is smaller than quantized"
    return quantized, "too few weights for a codebook to pay" if isinstance(quantized, RawTensor) else ""


def _smaller_biases(
    operation: Operation, tensors: Mapping[str, np.ndarray], precision: str
) -> dict[str, Tensor]:
    """Return biases on their grids, or unrounded at the precision of the rest where that is smaller."""
    made: dict[str, Tensor] = {}
    for name, bias in operation.biases.items():
        shape = tensors[name].shape
        on_grid = replace(bias.tensor, k=bias.tensor.k.reshape(shape))
        plain = _rest(bias.values.reshape(shape).astype(tensors[name].dtype), precision)
        made[name] = on_grid if estimate_bits(on_grid) < estimate_bits(plain) else plain
    return made


def continuous_weights(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights that are not quantized already: with more than a few distinct values."""
    return {
        name: array
        for name, array in tensors.items()
        if is_weight(array) and np.unique(array).size > min(_FEW_VALUES, int(np.count_nonzero(array)) // 4)
    }


def _lossless(tensors: Mapping[str, np.ndarray]) -> QuantizedModel:
    made, exact = TensorSpool(), {}
    for name, array in tensors.items():
        tensor = _smallest_exact(array)
        made.add(name, tensor)
        if isinstance(tensor, RawTensor):
            exact[name] = "no codebook, zeros or grid found"
        if array.nbytes >= _LARGE_BYTES:
            return_freed_memory()
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
