"""Write a model and its initializers: in one file, or with external data beside it."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .pending import PendingInitializer

MAX_MESSAGE_BYTES = (1 << 31) - (1 << 20)
INLINE_BYTES = 1024
_ALIGNMENT_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model file and, if it has one, its external data."""

    model_path: Path
    data_path: Path | None

    @property
    def total_bytes(self) -> int:
        """Bytes of both files."""
        return sum(path.stat().st_size for path in (self.model_path, self.data_path) if path is not None)


@contextlib.contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Make a temporary folder beside `target`, gone at the end whatever happens.

    Raises
    ------
    FileNotFoundError, IsADirectoryError
        If the target's folder does not exist, or the target is a folder.
    """
    if not target.parent.is_dir():
        raise FileNotFoundError(f"folder {target.parent} does not exist")
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder")
    folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_model(
    model: Any, pending: list[PendingInitializer], folder: Path, name: str, *, external: bool | None
) -> ModelFiles:
    """Write a model under `name` into `folder`.

    Parameters
    ----------
    model : onnx.ModelProto
        Initializers are added to it.
    pending : list of PendingInitializer
    folder : Path
    name : str
    external : bool or None
        Whether tensors of 1 KiB and more go into a file of their own; None: only if the model would
        pass 2 GiB, which no single protobuf message can.

    Raises
    ------
    ConversionError
        If the model passes 2 GiB and `external` is False.
    """
    total = model.ByteSize() + sum(
        initializer.n_bytes + 64 + len(initializer.name) for initializer in pending
    )
    if external is None:
        external = total > MAX_MESSAGE_BYTES
    elif not external and total > MAX_MESSAGE_BYTES:
        raise ConversionError(
            f"the model takes {total} bytes, more than one ONNX file holds; use external data"
        )
    model_path = folder / name
    data_path = folder / f"{name}.data"
    outside = [p for p in pending if external and p.n_bytes >= INLINE_BYTES]
    with contextlib.ExitStack() as stack:
        data_file = stack.enter_context(data_path.open("wb")) if outside else None
        for initializer in pending:
            goes_outside = data_file if initializer.n_bytes >= INLINE_BYTES else None
            _add_initializer(model, initializer, goes_outside, data_path.name)
        if data_file is not None:
            _sync(data_file)
    with model_path.open("wb") as model_file:
        model_file.write(model.SerializeToString(deterministic=True))
        _sync(model_file)
    return ModelFiles(model_path=model_path, data_path=data_path if outside else None)


def move_into_place(files: ModelFiles, target: Path) -> ModelFiles:
    """Rename finished files over the target, external data first."""
    data_path = None
    if files.data_path is not None:
        data_path = target.with_name(files.data_path.name)
        os.replace(files.data_path, data_path)
    os.replace(files.model_path, target)
    return ModelFiles(model_path=target, data_path=data_path)


def _add_initializer(
    model: Any, initializer: PendingInitializer, data_file: BinaryIO | None, location: str
) -> None:
    """Add one initializer to the model, its bytes inside or appended to `data_file`."""
    proto = model.graph.initializer.add()
    proto.name = initializer.name
    proto.data_type = initializer.data_type
    proto.dims.extend(initializer.shape)
    if data_file is None and initializer.integers:
        proto.int64_data.extend(initializer.integers)
        return
    content = initializer.read()
    if len(content) != initializer.n_bytes:
        raise ConversionError(
            f"tensor {initializer.name!r} gave {len(content)} bytes, not {initializer.n_bytes}"
        )
    if data_file is None:
        proto.raw_data = content
        return
    data_file.write(bytes(-data_file.tell() % _ALIGNMENT_BYTES))
    declare_external(proto, location, data_file.tell(), len(content))
    data_file.write(content)


def declare_external(proto: Any, location: str, offset_bytes: int, n_bytes: int) -> None:
    """Say that the data of a TensorProto lies in another file."""
    proto.data_location = require_package("onnx").TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset_bytes)), ("length", str(n_bytes))):
        entry = proto.external_data.add()
        entry.key, entry.value = key, value


def _sync(stream: BinaryIO) -> None:
    """Bring a file's content to the disk."""
    stream.flush()
    os.fsync(stream.fileno())
