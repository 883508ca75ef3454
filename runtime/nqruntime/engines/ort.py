"""Engine that decodes the tensors and lets ONNX Runtime compute.

Memory beyond the process itself, measured for 126 MB of float32 weights (30 MatMuls of 1024 x 1024, ONNX
Runtime 1.31, Linux): ``memory="default"`` holds 137 MB after creation (1.09 times the weights; 362 MB at its
peak, because ONNX Runtime copies and rearranges before the decoded arrays are freed) and takes 250-300 ms;
``memory="low"`` holds 140 MB, never more, and takes 8 ms, because ONNX Runtime reads the decoded arrays
where they lie; matrices are then not rearranged for speed, which costs nothing to 20 % in most shapes.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from nqformat.errors import (
    FormatError,
    LimitExceededError,
    MissingDependencyError,
    UnsupportedFeatureError,
)
from nqformat.limits import Limits
from nqruntime.element_types import BFLOAT16, onnx_number
from nqruntime.graph import Model
from nqruntime.tensor_declarations import MIN_IR_VERSION, declare_external, declare_inline, declare_ir_version
from nqruntime.tensor_file import TensorFile

from .engine import EngineSettings, KernelChoice, explain_nodes

_LOCATION = "nqz"
_INLINE_BYTES = 1024
_INLINE_INTEGER_BYTES = 1 << 20
_FATAL_ONLY = 4
_MALFORMED = ("InvalidProtobuf", "InvalidGraph")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Declared:
    """The graph with its tensors declared, and the values to hand over beside it.

    `arrays` maps a name to its values and their ONNX number.
    """

    content: bytes
    arrays: dict[str, tuple[np.ndarray, int]]
    weight_bytes: int


class OrtEngine:
    """A graph run by ONNX Runtime on the CPU."""

    name = "ort"

    def __init__(
        self,
        graph_bytes: bytes,
        model: Model,
        file: TensorFile,
        settings: EngineSettings,
        reasons: Mapping[int, str] | None = None,
    ) -> None:
        onnxruntime = require_onnxruntime()
        self._model = model
        self._reasons = dict(reasons or {})
        declared = _declare_tensors(graph_bytes, model, file, settings.limits)
        self.weight_bytes = declared.weight_bytes
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = settings.threads or 0
        self._kept_values: list[Any] = []
        if settings.memory == "low":
            self._session, self._kept_values = _open_sharing(onnxruntime, options, declared)
        else:
            self._session = _open_copying(onnxruntime, options, declared)
            del declared
            _return_freed_memory()

    def run(self, output_names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the named outputs."""
        try:
            return list(self._session.run(list(output_names), dict(feeds)))
        except Exception as error:
            raise FormatError(
                f"ONNX Runtime cannot run the graph: {_first_line(error)}", section="GRAPH"
            ) from error

    def explain(self) -> list[KernelChoice]:
        """Say that ONNX Runtime runs every node, and why the native engine does not."""
        return explain_nodes(self._model, "onnxruntime", self._reasons)

    def close(self) -> None:
        """Drop the session and the arrays that it reads."""
        self._session = None
        self._kept_values = []


def require_onnxruntime() -> ModuleType:
    """Import and return onnxruntime; MissingDependencyError if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise MissingDependencyError("onnxruntime", "ort") from None
    module: ModuleType = onnxruntime
    return module


def _declare_tensors(graph_bytes: bytes, model: Model, file: TensorFile, limits: Limits) -> _Declared:
    names = model.graph.free_names
    _check_total(file, names, limits)
    parts = [graph_bytes]
    if model.ir_version < MIN_IR_VERSION:
        parts.append(declare_ir_version())
    arrays: dict[str, tuple[np.ndarray, int]] = {}
    weight_bytes = 0
    for name in names:
        info = file.info(name)
        array = np.ascontiguousarray(file.get_tensor(name)).reshape(info.shape)
        assert info.dtype is not None
        number = onnx_number(info.dtype)
        weight_bytes += array.nbytes
        limit_bytes = _INLINE_BYTES if info.dtype.is_float else _INLINE_INTEGER_BYTES
        if array.nbytes <= limit_bytes:
            parts.append(declare_inline(name, number, array))
        else:
            parts.append(declare_external(name, number, array.shape, array.nbytes, _LOCATION))
            arrays[name] = (array, number)
    return _Declared(content=b"".join(parts), arrays=arrays, weight_bytes=weight_bytes)


def _check_total(file: TensorFile, names: Sequence[str], limits: Limits) -> None:
    total = sum(file.info(name).plain_bytes for name in names)
    if total > limits.materialised_bytes:
        raise LimitExceededError(f"tensors take {total} bytes decoded, limit {limits.materialised_bytes}")


def _open_copying(onnxruntime: ModuleType, options: Any, declared: _Declared) -> Any:
    """Open a session that copies the arrays."""
    names = list(declared.arrays)
    values = [_ort_value(onnxruntime, array, number) for array, number in declared.arrays.values()]
    if names:
        options.add_external_initializers(names, values)
    return _open(onnxruntime, options, declared.content)


def _open_sharing(onnxruntime: ModuleType, options: Any, declared: _Declared) -> tuple[Any, list[Any]]:
    """Open a session that reads the arrays where they lie; the second result must outlive it.

    ONNX Runtime wants to see the declared file, though it never reads it: one byte in a folder of its own.
    """
    options.add_session_config_entry("session.disable_prepacking", "1")
    kept: list[Any] = []
    for name, (array, number) in declared.arrays.items():
        value = _ort_value(onnxruntime, array, number)
        options.add_initializer(name, value)
        kept += [array, value]
    with tempfile.TemporaryDirectory(prefix="nqruntime-") as folder:
        with open(os.path.join(folder, _LOCATION), "wb") as stream:
            stream.write(b"\0")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
        return _open(onnxruntime, options, declared.content), kept


def _ort_value(onnxruntime: ModuleType, array: np.ndarray, number: int) -> Any:
    """Wrap an array without a copy."""
    if number == BFLOAT16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array, BFLOAT16)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def _open(onnxruntime: ModuleType, options: Any, content: bytes) -> Any:
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        message = f"ONNX Runtime cannot load the graph: {_first_line(error)}"
        if type(error).__name__ in _MALFORMED:
            raise FormatError(message, section="GRAPH") from error
        raise UnsupportedFeatureError(message) from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _return_freed_memory() -> None:
    """Give freed pages back to the system where the C library has a call for it (glibc).

    Decoded arrays of a few megabytes come from its heap, which otherwise keeps them: twice the weights.
    """
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return
    trim(0)
