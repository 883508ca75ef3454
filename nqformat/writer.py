"""Writing .nqz files (spec 2 to 8)."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .checksums import DEFAULT_PAGE_LOG2, checksums_of_pieces, n_pages
from .code_cost import Prefer
from .cursor import encode_varint
from .deflate import deflate
from .directory import GRAPH_ONNX, PAYLOAD_ALIGNMENT, RecordKind, record_bytes
from .encoder import ALIGN_FROM_BYTES, EncodedFile, encode_tensors
from .files import write_atomically
from .header import HEADER_BYTES, VERSION_MINOR, Header
from .metadata import encode_metadata
from .spool import Payload, Spool, pieces_of
from .tensor import RawTensor, Tensor
from .tensor_records import RawFields

TensorLike = np.ndarray | Tensor


def save(
    tensors: Mapping[str, TensorLike],
    *,
    graph: bytes | None = None,
    metadata: Mapping[str, Any] | None = None,
    edge: bool = False,
    prefer: str = "size",
) -> bytes:
    """Return the bytes of a .nqz file; see :func:`save_file`."""
    with Spool(None) as spool:
        encoded = encode_tensors(_Typed(tensors), _preference(prefer), spool)
        return b"".join(_pieces(encoded, graph, metadata, edge=edge))


def _pieces(
    encoded: EncodedFile, graph: bytes | None, metadata: Mapping[str, Any] | None, *, edge: bool
) -> Iterator[bytes]:
    """Yield the bytes of a file: the header and the directory first, then the body."""
    directory, payloads = _assemble(encoded, graph, metadata)
    stored, deflated, n_checksums = _settle_directory(directory, payloads, edge=edge)
    body_start = HEADER_BYTES + 4 * n_checksums + len(stored)
    checksums = checksums_of_pieces(_body(payloads, body_start), DEFAULT_PAGE_LOG2)
    directory_area = struct.pack(f"<{n_checksums}I", *checksums) + stored
    header = Header(
        minor=VERSION_MINOR,
        deflated=deflated,
        directory_bytes=len(directory_area),
        file_bytes=body_start + _body_end(payloads, body_start),
        directory_crc32=zlib.crc32(directory_area),
    )
    yield header.to_bytes()
    yield directory_area
    yield from _body(payloads, body_start)


def save_file(
    tensors: Mapping[str, TensorLike],
    path: str | os.PathLike[str],
    *,
    graph: bytes | None = None,
    metadata: Mapping[str, Any] | None = None,
    edge: bool = False,
    prefer: str = "size",
) -> int:
    """Write tensors to a .nqz file, atomically.

    Parameters
    ----------
    tensors : mapping of str to ndarray or Tensor
        Arrays are stored bit for bit; RawTensor, CodebookTensor, AffineTensor and ViewTensor as they say. A
        mapping that reads its tensors from elsewhere is asked for one at a time, several times each.
    path : path-like
    graph : bytes, optional
        Slim ONNX ModelProto whose tensors these are (spec 8.1).
    metadata : mapping, optional
        JSON object.
    edge : bool
        Leave the directory uncompressed, for readers without a heap.
    prefer : {"size", "speed"}
        Smallest file, or fastest decoding where the two differ: prefix codes only, no line classes, four
        sub-streams throughout. Files are at most a few percent larger.

    Returns
    -------
    int
        Bytes of the file.

    Raises
    ------
    TypeError, ValueError
        If a tensor, name or metadata value cannot be stored; nothing is written.
    OSError
        If the file cannot be written; an existing file stays as it was.

    Examples
    --------
    >>> import numpy as np, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "m.nqz")
    >>> save_file({"w": np.arange(6, dtype=np.float32).reshape(2, 3)}, path) == os.path.getsize(path)
    True
    """
    with Spool(Path(path).parent) as spool:
        encoded = encode_tensors(_Typed(tensors), _preference(prefer), spool)
        return write_atomically(path, _pieces(encoded, graph, metadata, edge=edge))


class _Typed(Mapping[str, Tensor]):
    """Tensors as the encoder takes them, out of arrays and tensors."""

    def __init__(self, tensors: Mapping[str, TensorLike]) -> None:
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return _as_tensor(name, self._tensors[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _preference(prefer: str) -> Prefer:
    if prefer not in tuple(p.value for p in Prefer):
        raise ValueError(f"prefer must be 'size' or 'speed', not {prefer!r}")
    return Prefer(prefer)


def _as_tensor(name: str, tensor: TensorLike) -> Tensor:
    if isinstance(tensor, np.ndarray | np.generic):
        try:
            return RawTensor.from_array(np.asarray(tensor))
        except TypeError as error:
            raise TypeError(f"tensor {name!r}: {error}") from None
    if not isinstance(tensor, Tensor):
        raise TypeError(
            f"tensor {name!r} is a {type(tensor).__name__}, not an array or a tensor of this package"
        )
    return tensor


def _assemble(
    encoded: EncodedFile, graph: bytes | None, metadata: Mapping[str, Any] | None
) -> tuple[bytes, list[tuple[Payload, bool]]]:
    """Frame all records; returns the plain directory and the payloads with their alignment."""
    directory = bytearray()
    payloads: list[tuple[Payload, bool]] = []

    def add(kind: RecordKind, body: bytes, payload: Payload | None = None, aligned: bool = False) -> None:
        nonlocal directory
        n_payload = None if payload is None else len(payload)
        directory += record_bytes(kind, body, n_payload, aligned=aligned)
        if payload is not None:
            payloads.append((payload, aligned))

    if metadata:
        add(RecordKind.METADATA, *_blob(encode_metadata(metadata)))
    if graph is not None:
        head, stored = _blob(graph)
        add(RecordKind.GRAPH, bytes([GRAPH_ONNX]) + head, stored)
    for table in encoded.tables:
        add(RecordKind.TABLE, table)
    for codebook, entries in encoded.codebooks:
        add(RecordKind.CODEBOOK, codebook.to_bytes(), entries)
    for stream, payload in encoded.streams:
        add(RecordKind.STREAM, stream.to_bytes(), payload)
    previous = ""
    for tensor, payload in encoded.tensors:
        stored_raw = isinstance(tensor.fields, RawFields) and not tensor.fields.coded_planes
        aligned = stored_raw and len(payload) >= ALIGN_FROM_BYTES
        add(RecordKind.TENSOR, tensor.to_bytes(previous), payload or None, aligned)
        previous = tensor.name
    return bytes(directory), payloads


def _blob(plain: bytes) -> tuple[bytes, bytes]:
    """Head and payload of metadata or graph bytes, deflated where that is smaller."""
    packed = deflate(plain)
    if len(packed) + 2 < len(plain):
        return bytes([1]) + encode_varint(len(plain)), packed
    return bytes([0]), plain


def _settle_directory(
    directory: bytes, payloads: list[tuple[Payload, bool]], *, edge: bool
) -> tuple[bytes, bool, int]:
    """Return the stored directory, whether it is deflated, and the number of page checksums.

    The padding of aligned payloads depends on where the body starts, hence on the number of checksums,
    which depends on the padding; where the two never agree, a padding record shifts the body.
    """
    for n_padding in range(PAYLOAD_ALIGNMENT):
        plain = directory + (record_bytes(RecordKind.PADDING, bytes(n_padding - 1)) if n_padding else b"")
        packed = encode_varint(len(plain)) + deflate(plain)
        deflated = not edge and len(packed) < len(plain)
        stored = packed if deflated else plain
        n_checksums = n_pages(_body_end(payloads, HEADER_BYTES + len(stored)), DEFAULT_PAGE_LOG2)
        for n_tried in range(n_checksums, n_checksums + 3):
            body_bytes = _body_end(payloads, HEADER_BYTES + 4 * n_tried + len(stored))
            if n_pages(body_bytes, DEFAULT_PAGE_LOG2) == n_tried:
                return stored, deflated, n_tried
    raise AssertionError("no padding settles the layout")


def _body_end(payloads: list[tuple[Payload, bool]], body_start: int) -> int:
    position = body_start
    for payload, aligned in payloads:
        if aligned:
            position = -(-position // PAYLOAD_ALIGNMENT) * PAYLOAD_ALIGNMENT
        position += len(payload)
    return position - body_start


def _body(payloads: list[tuple[Payload, bool]], body_start: int) -> Iterator[bytes]:
    """Yield the payloads in pieces, with the padding of those that are aligned."""
    position = body_start
    for payload, aligned in payloads:
        if aligned:
            padding = bytes(-position % PAYLOAD_ALIGNMENT)
            position += len(padding)
            yield padding
        yield from pieces_of(payload)
        position += len(payload)
