"""ONNX models as sources, with external data read only from inside the model's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from nqconvert.graphs.batch_norm import FOLDABLE, fold_batch_norms
from nqconvert.graphs.hoisting import hoist_initializers
from nqconvert.graphs.onnx_tensor import array_of_bytes, n_elements, stored_dtype
from nqconvert.graphs.ort_session import open_session, run_session
from nqconvert.graphs.scope import walk_graphs, walk_nodes
from nqconvert.graphs.slimming import SlimGraph, slim_graph
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .model_source import ModelSource, Runner

_EXTERNAL = 1
_MAX_MESSAGE_BYTES = (1 << 31) - 1
_LARGE_TENSOR_BYTES = 1 << 20
_LARGE_CONTENT_BYTES = 1 << 28


def load_onnx_file(path: Path, *, fold: bool = True) -> ModelSource:
    """Read an .onnx file and its external data.

    Parameters
    ----------
    path : Path
    fold : bool
        Fold batch norms into the weights before them.

    Raises
    ------
    ConversionError
        If the file is no ONNX model, or its external data is missing or lies outside its folder.
    """
    content = path.read_bytes()
    model = parse_model(content, path)
    large = read_large_tensors(model, path.parent)
    uses_external = attach_external_data(model, path.parent) or bool(large)
    kept = uses_external or len(content) > _LARGE_CONTENT_BYTES
    return _source_of(model, original=path if kept else content, fold=fold, large=large)


def load_model_proto(model: Any, *, fold: bool = True) -> ModelSource:
    """Take an onnx.ModelProto; it is not changed; `fold` as in :func:`load_onnx_file`.

    Raises
    ------
    ConversionError
        If it refers to external data, or is too large to be run by ONNX Runtime from memory.
    """
    if any(_is_external(tensor) for tensor in model_tensors(model)):
        raise ConversionError("the ModelProto refers to external data; pass the path of the .onnx file")
    copy = type(model)()
    copy.CopyFrom(model)
    original = model.SerializeToString() if model.ByteSize() < _MAX_MESSAGE_BYTES else None
    return _source_of(copy, original=original, fold=fold)


def parse_model(content: bytes, origin: object) -> Any:
    """Parse a serialized ModelProto.

    Raises
    ------
    ConversionError
        If the bytes are not an ONNX model with a graph.
    """
    onnx = require_package("onnx")
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError:
        raise ConversionError(f"{origin} is not an ONNX model") from None
    if not model.HasField("graph") or not model.opset_import:
        raise ConversionError(f"{origin} is not an ONNX model: it has no graph or no opset")
    return model


def slim_model(
    model: Any,
    *,
    named_tensors: Mapping[str, np.ndarray] | None = None,
    fold: bool = True,
    large: Mapping[str, np.ndarray] | None = None,
) -> tuple[SlimGraph, tuple[str, ...]]:
    """Hoist weights, fold batch norms and split the model; returns the parts and notes about them.

    Parameters
    ----------
    model : onnx.ModelProto
        Changed in place.
    named_tensors : mapping of str to ndarray, optional
        Tensors of the model the graph was exported from.
    fold : bool
        Fold batch norms.
    large : mapping of str to ndarray, optional
        Content of initializers that have none in the model.
    """
    reasons = hoist_initializers(model)
    folded = fold_batch_norms(model) if fold else ()
    slim = slim_graph(model, model_tensors=named_tensors, large=large)
    slim.reasons.update(reasons)
    notes = []
    if folded:
        notes.append(f"batch norm folded into: {', '.join(folded)}")
    if slim.unread and not named_tensors:
        notes.append(f"left out, nothing reads them: {', '.join(slim.unread)}")
    if slim.duplicates and not named_tensors:
        notes.append("stored once: " + ", ".join(f"{old} = {new}" for old, new in slim.duplicates.items()))
    if not slim.tensors and not slim.reasons:
        notes.append("the model holds no weights: nothing to compress but its graph")
    return slim, tuple(notes)


def model_tensors(model: Any) -> Iterator[Any]:
    """Yield every TensorProto of a model: initializers and attributes, nested graphs and functions too."""
    node_lists = [function.node for function in model.functions]
    for graph in walk_graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices
        node_lists.append(graph.node)
    for nodes in node_lists:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def read_large_tensors(model: Any, folder: Path) -> dict[str, np.ndarray]:
    """Read large external initializers into arrays, so that the model holds no second copy of them.

    Only those that are sure to go into the tensor table as they are; the others are left to
    `attach_external_data`, whose errors are raised here too. The model then says no longer where they are.
    """
    inputs = {value.name for value in model.graph.input}
    operators = {node.op_type for node in walk_nodes(model.graph)}
    products = {
        name
        for node in walk_nodes(model.graph)
        for name in node.input
        if "BatchNormalization" in operators and node.op_type in FOLDABLE
    }
    large: dict[str, np.ndarray] = {}
    for tensor in model.graph.initializer:
        dtype = stored_dtype(tensor)
        if not _is_external(tensor) or dtype is None or tensor.name in inputs | products:
            continue
        n_bytes = n_elements(tensor) * dtype.itemsize
        if n_bytes < _LARGE_TENSOR_BYTES:
            continue
        content = _external_bytes(tensor, folder)
        if len(content) != n_bytes:
            raise ConversionError(
                f"initializer {tensor.name!r} is malformed: {len(content)} bytes of external data, "
                f"not {n_bytes}"
            )
        large[tensor.name] = array_of_bytes(content, tensor)
        tensor.data_location = 0
        del tensor.external_data[:]
    return large


def attach_external_data(model: Any, folder: Path) -> bool:
    """Read external tensor data into the model; return whether there was any.

    Raises
    ------
    ConversionError
        If a location leaves `folder`, is a link, or holds fewer bytes than declared.
    """
    found = False
    for tensor in model_tensors(model):
        if not _is_external(tensor):
            continue
        found = True
        tensor.raw_data = _external_bytes(tensor, folder)
        tensor.data_location = 0
        del tensor.external_data[:]
    return found


def _is_external(tensor: Any) -> bool:
    """Tell whether the data of a TensorProto lies in another file."""
    return bool(tensor.data_location == _EXTERNAL)


def _external_bytes(tensor: Any, folder: Path) -> bytes:
    """Return the external data of one tensor."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path = _external_path(tensor.name, entries.get("location", ""), folder)
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
    except ValueError:
        raise ConversionError(
            f"initializer {tensor.name!r}: external offset or length is no number"
        ) from None
    # the open file is looked at, not the name, which may be another file by now
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        found = os.fstat(file.fileno())
        if found.st_nlink > 1:
            raise ConversionError(
                f"initializer {tensor.name!r}: external data file {path.name} is a hard link"
            )
        available = found.st_size - offset
        if offset < 0 or length < -1 or available < max(length, 0):
            raise ConversionError(
                f"initializer {tensor.name!r}: bytes {offset}..{offset + length} lie outside {path.name} "
                f"({found.st_size} bytes)"
            )
        file.seek(offset)
        return file.read(available if length < 0 else length)


def _external_path(name: str, location: str, folder: Path) -> Path:
    """Return the file of an external tensor after checking that it lies in `folder` and is no link."""
    parts = PurePosixPath(location.replace("\\", "/")).parts
    if not parts or location.startswith(("/", "\\")) or ".." in parts or ":" in parts[0]:
        raise ConversionError(
            f"initializer {name!r}: external location {location!r} leaves the model's folder"
        )
    path = folder
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise ConversionError(
                f"initializer {name!r}: external location {location!r} is a link; put the file itself there"
            )
    if not path.is_file():
        raise ConversionError(f"initializer {name!r}: external data file {os.fspath(path)!r} is missing")
    return path


def _source_of(
    model: Any,
    *,
    original: bytes | Path | None,
    fold: bool,
    large: Mapping[str, np.ndarray] | None = None,
) -> ModelSource:
    """Split a model whose tensors are all in memory."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    input_names = tuple(value.name for value in model.graph.input if value.name not in initializers)
    output_names = tuple(value.name for value in model.graph.output)
    slim, notes = slim_model(model, fold=fold, large=large)
    return ModelSource(
        tensors=slim.tensors,
        views=slim.views,
        graph=slim.graph,
        reasons=slim.reasons,
        run=None if original is None else _runner(original),
        input_names=input_names,
        output_names=output_names,
        notes=notes if original is not None else (*notes, "too large to run the original from memory"),
    )


def _runner(original: bytes | Path) -> Runner:
    """Return a function that runs the original model; the session is created at the first call."""
    sessions: list[Any] = []

    def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        if not sessions:
            sessions.append(open_session(original))
        return run_session(sessions[0], feeds)

    return run
