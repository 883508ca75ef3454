"""Find the tensors that the graph of a .nqz file reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from nqconvert.graphs.scope import free_names
from nqformat import TensorInfo
from nqformat.errors import ConversionError, CorruptError
from nqformat.optional_packages import require_package
from nqformat.tensor import GroupedTensor, PackedTensor, ViewTensor


class TensorFile(Protocol):
    """What an export needs of an open .nqz file; bfloat16 tensors come as uint16 bits."""

    def __iter__(self) -> Iterator[str]:
        """Iterate over the tensor names."""
        ...

    def graph(self) -> bytes | None:
        """Return the slim ModelProto."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Describe a tensor."""
        ...

    def get_tensor(self, name: str) -> np.ndarray:
        """Decode a tensor."""
        ...

    def get_packed(self, name: str) -> PackedTensor | np.ndarray:
        """Undo a tensor's entropy coding only."""
        ...

    def get_grouped(self, name: str) -> GroupedTensor | None:
        """Undo the entropy coding of a tensor with grouped or vector codebooks; None for any other."""
        ...

    def view(self, name: str) -> ViewTensor | None:
        """Say what a view is made of; None for any other tensor."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredModel:
    """The graph of a file and the tensors it reads.

    Attributes
    ----------
    model : onnx.ModelProto
    tensors : tuple of TensorInfo
        In order of first use.
    """

    model: Any
    tensors: tuple[TensorInfo, ...]

    @property
    def opset(self) -> int:
        """Version of ONNX's default domain."""
        return opset_of(self.model)


def read_stored_model(file: TensorFile) -> StoredModel:
    """Parse the graph of an open file and look up every tensor it reads.

    Raises
    ------
    ConversionError
        If the file has no graph, or the graph reads a tensor that the file does not have.
    CorruptError
        If the graph is no ModelProto.
    """
    content = file.graph()
    if content is None:
        raise ConversionError(
            "the file holds no graph, so there is no model to export; decompress it instead"
        )
    onnx = require_package("onnx")
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError:
        raise CorruptError("not an ONNX ModelProto", section="GRAPH") from None
    names = free_names(model.graph)
    missing = [name for name in names if name not in set(file)]
    if missing:
        raise ConversionError(f"the graph reads tensors that the file does not have: {', '.join(missing)}")
    return StoredModel(model=model, tensors=tuple(file.info(name) for name in names))


def opset_of(model: Any) -> int:
    """Return the version of ONNX's default domain that a model imports."""
    versions = [int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    if not versions:
        raise ConversionError("the graph imports no version of ONNX's default operators")
    return versions[0]
