"""ONNX Runtime sessions with one thread and no log output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalValue:
    """Value of an initializer that is handed over beside the model.

    Attributes
    ----------
    bits : ndarray
        Contiguous, in the storage dtype (bfloat16 as uint16 bits).
    data_type : int
        TensorProto.DataType number.
    """

    bits: np.ndarray
    data_type: int


def open_session(model: bytes | Path, *, external: Mapping[str, ExternalValue] | None = None) -> Any:
    """Create a single-threaded session on the CPU.

    Parameters
    ----------
    model : bytes or Path
        Serialized ModelProto, or the path of one.
    external : mapping of str to ExternalValue, optional
        Values of initializers that the model declares as external data.

    Raises
    ------
    ConversionError
        If ONNX Runtime cannot load the model.
    """
    onnxruntime = require_package("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    if external:
        make = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type
        values = [make(value.bits, value.data_type) for value in external.values()]
        options.add_external_initializers(list(external), values)
    content = model if isinstance(model, bytes) else str(model)
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ConversionError(f"ONNX Runtime cannot load the model: {_first_line(error)}") from error


def run_session(session: Any, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run `session` on `feeds` and return all outputs.

    Raises
    ------
    ValueError
        If the names of `feeds` are not those of the inputs.
    ConversionError
        If ONNX Runtime fails.
    """
    wanted = [value.name for value in session.get_inputs()]
    check_feed_names(feeds, wanted)
    try:
        return list(session.run(None, dict(feeds)))
    except Exception as error:
        raise ConversionError(f"ONNX Runtime cannot run the model: {_first_line(error)}") from error


def check_feed_names(feeds: Mapping[str, np.ndarray], wanted: list[str] | tuple[str, ...]) -> None:
    """Raise ValueError unless `feeds` has exactly the wanted names."""
    if set(feeds) != set(wanted):
        raise ValueError(f"the model takes inputs {sorted(wanted)}, got {sorted(feeds)}")


def relative_difference(expected: np.ndarray, actual: np.ndarray) -> float:
    """Return the largest difference of two outputs over the largest magnitude of `expected`.

    NaN and infinities must stand at the same places; where they do not, the result is infinite.
    """
    if expected.shape != actual.shape:
        return float("inf")
    if expected.dtype.kind in "OSU" or expected.dtype.kind == "b":
        return 0.0 if np.array_equal(expected, actual) else float("inf")
    wide, other = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(wide)
    if (
        not np.array_equal(wide[~finite], other[~finite], equal_nan=True)
        or not np.isfinite(other[finite]).all()
    ):
        return float("inf")
    if not finite.any():
        return 0.0
    largest = float(np.abs(wide[finite]).max())
    difference = float(np.abs(wide[finite] - other[finite]).max())
    return difference / largest if largest else difference


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
