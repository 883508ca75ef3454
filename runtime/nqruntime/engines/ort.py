"""Engine that decodes the tensors and lets ONNX Runtime compute.

Memory beyond the process itself, measured for 126 MB of float32 weights (30 MatMuls of 1024 x 1024, ONNX
Runtime 1.31, Linux). ``memory="default"`` holds 134 MB after creation, 1.06 times the weights, and 263 MB at
its peak, because ONNX Runtime copies and rearranges before the decoded arrays are freed. ``memory="low"``
writes each tensor to a temporary file as it is decoded and lets ONNX Runtime map that file: 11 MB after
creation, 134 MB once a run has touched every weight, all but 2 MB of it pages that the system may drop.
Handing the arrays over in place (``add_initializer``) holds as much in memory that cannot be dropped, and
fails where ONNX Runtime folds constants, which it reads from the declared file. Without a rearranged copy,
matrix products take nothing to 20 % longer in most shapes.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from nqformat.errors import (
    FormatError,
    LimitExceededError,
    UnsupportedFeatureError,
)
from nqformat.limits import Limits
from nqformat.optional_packages import require_package
from nqruntime.element_types import BFLOAT16, onnx_number
from nqruntime.graph import Model
from nqruntime.tensor_declarations import MIN_IR_VERSION, declare_external, declare_inline, declare_ir_version
from nqruntime.tensor_file import TensorFile

from .engine import EngineSettings, KernelChoice, explain_nodes

_LOCATION = "nqz"
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
_FILE_ALIGNMENT = 1 << 16
_INLINE_BYTES = 1024
_INLINE_INTEGER_BYTES = 1 << 20
_FATAL_ONLY = 4
_MALFORMED = ("InvalidProtobuf", "InvalidGraph")


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
        onnxruntime = require_package("onnxruntime")
        self._model = model
        self._reasons = dict(reasons or {})
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = settings.threads or 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        names = model.graph.free_names
        self.weight_bytes = _check_total(file, names, settings.limits)
        if settings.memory == "low":
            self._folder = tempfile.TemporaryDirectory(prefix="nqruntime-", ignore_cleanup_errors=True)
            content = _declare_in_file(graph_bytes, model, file, self._folder.name)
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.add_session_config_entry(_FOLDER_KEY, self._folder.name)
            self._session = _open(onnxruntime, options, content)
            self._folder.cleanup()
        else:
            self._session = _open_copying(onnxruntime, options, graph_bytes, model, file)
            _return_freed_memory()

    def run(self, output_names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the named outputs."""
        try:
            return list(self._session.run(list(output_names), dict(feeds)))
        except Exception as error:
            raise FormatError(
                f"ONNX Runtime cannot run the graph: {_first_line(error)}", section="GRAPH"
            ) from error

    def explain(self, feeds: Mapping[str, np.ndarray] | None = None) -> list[KernelChoice]:
        """Say that ONNX Runtime runs every node, and why the native engine does not; nodes are not timed."""
        return explain_nodes(self._model, "onnxruntime", self._reasons)

    def close(self) -> None:
        """Drop the session and, where a mapped file could not be removed before, the file."""
        self._session = None
        if self._folder is not None:
            self._folder.cleanup()


def _check_total(file: TensorFile, names: Sequence[str], limits: Limits) -> int:
    """Return the bytes of all decoded tensors; LimitExceededError if they are too many."""
    total = sum(file.info(name).plain_bytes for name in names)
    if total > limits.materialised_bytes:
        raise LimitExceededError(f"tensors take {total} bytes decoded, limit {limits.materialised_bytes}")
    return total


def _declare_tensors(
    graph_bytes: bytes,
    model: Model,
    file: TensorFile,
    hand_over: Callable[[str, int, np.ndarray], int],
) -> bytes:
    """Return the graph with its tensors declared.

    Small and integer ones are declared with their values, so that shapes can be inferred from them.

    Parameters
    ----------
    hand_over : callable
        Takes name, ONNX number and values of each larger tensor; returns its offset in bytes.
    """
    parts = [graph_bytes]
    if model.ir_version < MIN_IR_VERSION:
        parts.append(declare_ir_version())
    for name in model.graph.free_names:
        info = file.info(name)
        array = np.ascontiguousarray(file.get_tensor(name)).reshape(info.shape)
        assert info.dtype is not None
        number = onnx_number(info.dtype)
        limit_bytes = _INLINE_BYTES if info.dtype.is_float else _INLINE_INTEGER_BYTES
        if array.nbytes <= limit_bytes:
            parts.append(declare_inline(name, number, array))
        else:
            parts.append(declare_external(name, number, array, _LOCATION, hand_over(name, number, array)))
    return b"".join(parts)


def _open_copying(
    onnxruntime: ModuleType, options: Any, graph_bytes: bytes, model: Model, file: TensorFile
) -> Any:
    """Open a session that copies the decoded arrays, which may be freed afterwards."""
    values: dict[str, Any] = {}

    def hand_over(name: str, number: int, array: np.ndarray) -> int:
        values[name] = _ort_value(onnxruntime, array, number)
        return 0

    content = _declare_tensors(graph_bytes, model, file, hand_over)
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    return _open(onnxruntime, options, content)


def _declare_in_file(graph_bytes: bytes, model: Model, file: TensorFile, folder: str) -> bytes:
    """Write the tensors to a file that ONNX Runtime can map, one at a time."""
    with open(os.path.join(folder, _LOCATION), "wb") as stream:

        def hand_over(name: str, number: int, array: np.ndarray) -> int:
            stream.write(bytes(-stream.tell() % _FILE_ALIGNMENT))
            offset = stream.tell()
            stream.write(array.reshape(-1).view(np.uint8).data)
            return offset

        return _declare_tensors(graph_bytes, model, file, hand_over)


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
