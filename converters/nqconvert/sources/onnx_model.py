"""ONNX models as sources, with external data read only from inside the model's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from nqconvert.graphs.batch_norm import fold_batch_norms
from nqconvert.graphs.hoisting import hoist_initializers
from nqconvert.graphs.ort_session import open_session, run_session
from nqconvert.graphs.scope import walk_graphs
from nqconvert.graphs.slimming import SlimGraph, slim_graph
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .model_source import ModelSource, Runner

_EXTERNAL = 1
_MAX_MESSAGE_BYTES = (1 << 31) - 1


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
    uses_external = attach_external_data(model, path.parent)
    return _source_of(model, original=path if uses_external else content, fold=fold)


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
    model: Any, *, named_tensors: Mapping[str, np.ndarray] | None = None, fold: bool = True
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
    """
    reasons = hoist_initializers(model)
    folded = fold_batch_norms(model) if fold else ()
    slim = slim_graph(model, model_tensors=named_tensors)
    slim.reasons.update(reasons)
    notes = []
    if folded:
        notes.append(f"batch norm folded into: {', '.join(folded)}")
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
            raise ConversionError(f"initializer {name!r}: external location {location!r} is a link")
    if not path.is_file():
        raise ConversionError(f"initializer {name!r}: external data file {os.fspath(path)!r} is missing")
    return path


def _source_of(model: Any, *, original: bytes | Path | None, fold: bool) -> ModelSource:
    """Split a model whose tensors are all in memory."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    input_names = tuple(value.name for value in model.graph.input if value.name not in initializers)
    output_names = tuple(value.name for value in model.graph.output)
    slim, notes = slim_model(model, fold=fold)
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
