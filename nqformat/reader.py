"""Reading .nqz files: whole, or tensor by tensor from a memory map (spec 2 to 9)."""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from .checksums import PageVerifier
from .codebooks import CodebookRecord
from .cursor import ByteCursor
from .deflate import inflate
from .directory import BlobRecord, Directory, StreamSlice, parse_directory
from .dtypes import DType, bfloat16_array
from .errors import CorruptError, LimitExceededError, UnsupportedFeatureError
from .header import HEADER_BYTES, Header, check_magic
from .limits import Limits
from .metadata import decode_metadata
from .streams import StreamRecord
from .tensor import GroupedTensor, Layout, PackedTensor, ViewSource, ViewTensor
from .tensor_decoder import TensorDecoder, is_grouped
from .tensor_records import (
    CodebookValues,
    HashedFields,
    PackedFields,
    TensorRecord,
    ViewFields,
)
from .workers import Workers

_CHECK_BYTES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """What the directory says of one tensor.

    Attributes
    ----------
    name : str
    dtype : DType or None
        None if this reader does not know the type.
    shape : tuple of int
    layout : Layout or None
        None if the tensor is not supported.
    n_stored : int
        Elements with a symbol (nonzeros when sparse); all elements for other layouts.
    codebook_entries : int
        0 without a codebook; of each group, if there are several.
    codebook_groups, codebook_width : int
        Codebooks, and elements of an entry: 1 unless they are grouped, or of vectors.
    n_scales : int
        0 without scales.
    unsupported : str
        Why the tensor cannot be read, or an empty string.
    sources : tuple of str
        Names of the tensors that a view or a hashed tensor takes its elements from.
    """

    name: str
    dtype: DType | None
    shape: tuple[int, ...]
    layout: Layout | None
    n_stored: int
    codebook_entries: int
    unsupported: str
    sources: tuple[str, ...]
    codebook_groups: int = 1
    codebook_width: int = 1
    n_scales: int = 0

    @property
    def n_elements(self) -> int:
        """Product of the dimensions."""
        return math.prod(self.shape)

    @property
    def plain_bytes(self) -> int:
        """Bytes of the decoded tensor; 0 for an unknown dtype."""
        return self.n_elements * (self.dtype.itemsize if self.dtype is not None else 0)


class NqzFile:
    """An open .nqz file; use :func:`safe_open` or :func:`from_bytes`.

    Methods may be called from several threads. Each page of the file is checked against its checksum before
    its first use.
    """

    def __init__(
        self,
        buffer: bytes | memoryview | mmap.mmap,
        *,
        limits: Limits | None = None,
        verify: bool = True,
        bfloat16: str = "ml_dtypes",
        threads: int | None = None,
    ) -> None:
        self._workers = Workers(threads)
        self._limits = limits or Limits()
        self._bfloat16 = bfloat16
        self._owner = buffer
        self._view = memoryview(buffer)
        try:
            self.header = Header.parse(bytes(self._view[:HEADER_BYTES]), len(self._view))
            self._directory = self._read_directory(verify)
        except BaseException:
            self._view.release()
            raise
        self._numbers = {record.name: i for i, record in enumerate(self._directory.tensors)}
        self.decoder = TensorDecoder(self._directory, self._bytes, self._limits, self._workers)

    def _read_directory(self, verify: bool) -> Directory:
        header = self.header
        stored = bytes(self._view[HEADER_BYTES : header.body_start_abs])
        if zlib.crc32(stored) != header.directory_crc32:
            raise CorruptError("directory checksum differs", section="DIRECTORY", offset_abs=HEADER_BYTES)
        n_checksums = 4 * header.n_pages
        checksums = np.frombuffer(stored, dtype="<u4", count=header.n_pages).tolist()
        self._verifier = PageVerifier(
            self._view, header.body_start_abs, checksums, header.page_log2, enabled=verify
        )
        plain = stored[n_checksums:]
        if len(plain) > self._limits.directory_bytes:
            raise LimitExceededError(
                f"directory of {len(plain)} bytes", section="DIRECTORY", offset_abs=HEADER_BYTES
            )
        if header.deflated:
            cursor = ByteCursor(plain, "DIRECTORY", HEADER_BYTES + n_checksums)
            plain_bytes = cursor.varint()
            plain = inflate(
                cursor.take(cursor.remaining), plain_bytes, self._limits.directory_bytes, "DIRECTORY"
            )
        return parse_directory(plain, header.body_start_abs, header.file_bytes, self._limits)

    def __enter__(self) -> NqzFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the memory map; arrays handed out stay valid."""
        self._workers.close()
        self.decoder.slices.forget_chunks()
        self._view.release()
        if isinstance(self._owner, mmap.mmap):
            # the frames of an error that is being raised may still refer to the map; it then goes with them
            with contextlib.suppress(BufferError):
                self._owner.close()

    @property
    def directory(self) -> Directory:
        """The parsed directory, for tools that inspect files."""
        return self._directory

    def keys(self) -> list[str]:
        """Tensor names in file order."""
        return list(self._numbers)

    def __contains__(self, name: object) -> bool:
        return name in self._numbers

    def __iter__(self) -> Iterator[str]:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    def metadata(self) -> dict[str, Any]:
        """Return the metadata object; empty if the file has none."""
        blob = self._directory.metadata
        return (
            {}
            if blob is None
            else decode_metadata(self._read_blob(blob, self._limits.metadata_bytes, "METADATA"))
        )

    def graph(self) -> bytes | None:
        """Return the slim ONNX ModelProto, or None if the file has no graph."""
        blob = self._directory.graph
        return None if blob is None else self._read_blob(blob, self._limits.graph_bytes, "GRAPH")

    def _read_blob(self, blob: BlobRecord, limit_bytes: int, section: str) -> bytes:
        if blob.unsupported:
            raise UnsupportedFeatureError(blob.unsupported)
        stored = self._bytes(blob.payload_start_abs, blob.payload_bytes)
        if not blob.deflated:
            return bytes(stored)
        return inflate(stored, blob.plain_bytes, limit_bytes, section)

    def _bytes(self, start_abs: int, n_bytes: int) -> memoryview:
        """Return checked bytes of the file."""
        self._verifier.check(start_abs, start_abs + n_bytes)
        return self._view[start_abs : start_abs + n_bytes]

    def payload(self, stream: StreamRecord) -> bytes:
        """Return the checked bytes of a stream, for tools that inspect files."""
        return bytes(self._bytes(stream.payload_start_abs, stream.payload_bytes))

    def release_pages(self) -> None:
        """Let go of the pages of a mapped file that were read so far; they are read again when needed.

        Pages of a map count as memory of the process while it holds them. Does nothing where the system has
        no such call, or for a file in memory.
        """
        if isinstance(self._owner, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            self._owner.madvise(mmap.MADV_DONTNEED)

    def verify_checksums(self) -> None:
        """Check every page; CorruptError names the first that differs."""
        start, stop = self.header.body_start_abs, self.header.file_bytes
        self._workers.run(
            [
                partial(self._verifier.check, i, min(i + _CHECK_BYTES, stop))
                for i in range(start, stop, _CHECK_BYTES)
            ],
            stop - start,
        )

    def info(self, name: str) -> TensorInfo:
        """Describe a tensor without decoding it; KeyError if there is none of that name."""
        record = self._record(name)
        fields = record.fields
        groups, entries, width = 1, 0, 1
        if isinstance(fields, PackedFields) and isinstance(fields.rule, CodebookValues):
            codebook = self._directory.codebooks[fields.rule.codebook]
            groups, entries, width = codebook.shape if isinstance(codebook, CodebookRecord) else (1, 0, 1)
        n_stored, n_scales = min(width * record.n_stored, record.n_elements), 0
        if isinstance(fields, PackedFields) and fields.scales is not None:
            n_scales = fields.scales.n_scales
        sources: tuple[str, ...] = ()
        if isinstance(fields, ViewFields):
            sources = tuple(self._directory.tensors[p.tensor].name for p in fields.parts)
        elif isinstance(fields, HashedFields):
            sources = (self._directory.tensors[fields.tensor].name,)
        return TensorInfo(
            name=name,
            dtype=record.dtype,
            shape=record.shape,
            layout=record.layout,
            n_stored=n_stored,
            codebook_entries=entries,
            unsupported=record.unsupported,
            sources=sources,
            codebook_groups=groups,
            codebook_width=width,
            n_scales=n_scales,
        )

    def _record(self, name: str) -> TensorRecord:
        try:
            return self._directory.tensors[self._numbers[name]]
        except KeyError:
            raise KeyError(f"the file has no tensor named {name!r}") from None

    def get_tensor(self, name: str) -> np.ndarray:
        """Decode one tensor.

        Raises
        ------
        KeyError
            If the file has no such tensor.
        FormatError, UnsupportedFeatureError
            If its bytes are damaged or newer than this reader.
        """
        record = self._record(name)
        bits = self.decoder.decode(record)
        return bfloat16_array(bits, self._bfloat16) if record.dtype is DType.BFLOAT16 else bits

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Decode every tensor in file order; what views and hashed tensors take from is decoded once.

        Many small views of one large tensor then cost no more than they and that tensor hold. Sources are
        kept while they fit into the limit; arrays must not be changed before the last one was taken.
        """
        wanted = {
            number
            for record in self._directory.tensors
            if isinstance(record.fields, ViewFields | HashedFields)
            for number in record.fields.sources
        }
        room = self._limits.materialised_bytes
        kept: dict[int, np.ndarray] = {}
        for number, record in enumerate(self._directory.tensors):
            bits = self.decoder.decode(record, kept)
            if number in wanted and bits.nbytes <= room:
                kept[number] = bits
                room -= bits.nbytes
            yield (
                record.name,
                bfloat16_array(bits, self._bfloat16) if record.dtype is DType.BFLOAT16 else bits,
            )
            del bits  # one tensor in memory at a time, if the caller keeps none

    def get_packed(self, name: str) -> PackedTensor | np.ndarray:
        """Undo a tensor's entropy coding only.

        Returns
        -------
        PackedTensor for the layouts DENSE, SPARSE and MASK with one codebook or affine values; otherwise the
        decoded array, as :meth:`get_tensor` gives it.
        """
        record = self._record(name)
        if isinstance(record.fields, PackedFields) and not is_grouped(record.fields):
            return self.decoder.packed(record, record.fields)
        return self.get_tensor(name)

    def get_grouped(self, name: str) -> GroupedTensor | None:
        """Undo the entropy coding of a tensor with grouped or vector codebooks; None for any other."""
        record = self._record(name)
        if not isinstance(record.fields, PackedFields) or not is_grouped(record.fields):
            return None
        return self.decoder.grouped(record, record.fields)

    def view(self, name: str) -> ViewTensor | None:
        """Say what a view is made of, without decoding it; None for any other tensor."""
        record = self._record(name)
        if not isinstance(record.fields, ViewFields):
            return None
        sources = tuple(
            ViewSource(
                name=self._directory.tensors[part.tensor].name,
                start=part.start,
                stop=part.start + part.n_rows,
            )
            for part in record.fields.parts
        )
        return ViewTensor(sources=sources, permutation=record.fields.permutation, shape=record.shape)

    def get_slice(self, name: str, start: int, stop: int) -> np.ndarray:
        """Decode rows ``start:stop`` of axis 0; dense tensors read only the chunks that hold them.

        Raises
        ------
        ValueError
            If the tensor is a scalar or the range leaves it.
        """
        record = self._record(name)
        if not record.shape or not 0 <= start <= stop <= record.shape[0]:
            raise ValueError(f"rows {start}:{stop} of tensor {name!r} with shape {record.shape}")
        fields, row = record.fields, math.prod(record.shape[1:])
        if (
            isinstance(fields, PackedFields)
            and record.layout is Layout.DENSE
            and not fields.column_scan
            and fields.partition is None
        ):
            bits = self.decoder.dense_range(record, fields, start * row, stop * row)
        elif isinstance(fields, HashedFields):
            bits = self.decoder.hashed_range(fields, start * row, stop * row)
        else:
            return self.get_tensor(name)[start:stop]
        bits = bits.reshape(stop - start, *record.shape[1:])
        return bfloat16_array(bits, self._bfloat16) if record.dtype is DType.BFLOAT16 else bits

    def slice_numbers(self, part: StreamSlice) -> np.ndarray:
        """Return all numbers of one slice of a stream, for tools that inspect files."""
        if 8 * part.n_elements > self._limits.materialised_bytes:
            raise LimitExceededError(f"{part.n_elements} numbers exceed the limit", section="STREAM")
        return self.decoder.slices.numbers("", part)


def safe_open(
    path: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
    verify: bool = True,
    bfloat16: str = "ml_dtypes",
    threads: int | None = None,
) -> NqzFile:
    """Open a file for random access by tensor name, through a memory map.

    Parameters
    ----------
    path : path-like
    limits : Limits, optional
    verify : bool
        Check the CRC-32 of every page before its first use.
    bfloat16 : {"ml_dtypes", "uint16", "float32"}
        How bfloat16 tensors are handed out.
    threads : int, optional
        Threads that decode large tensors; by default one for each processor that this process may use. The
        result does not depend on it.

    Raises
    ------
    OSError
        If the file cannot be opened.
    FormatError, UnsupportedVersionError, UnsupportedFeatureError
        If it is not a readable .nqz file.

    Examples
    --------
    >>> import numpy as np, tempfile, os
    >>> path = os.path.join(tempfile.mkdtemp(), "m.nqz")
    >>> save_path = __import__("nqformat").save_file({"w": np.ones((2, 3), np.float32)}, path)
    >>> with safe_open(path) as f:
    ...     f.get_tensor("w").shape
    (2, 3)
    """
    with open(path, "rb") as stream:
        if os.fstat(stream.fileno()).st_size == 0:
            return NqzFile(b"", limits=limits)
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return NqzFile(mapped, limits=limits, verify=verify, bfloat16=bfloat16, threads=threads)
    except BaseException:
        mapped.close()
        raise


def from_bytes(
    content: bytes | memoryview,
    *,
    limits: Limits | None = None,
    verify: bool = True,
    bfloat16: str = "ml_dtypes",
    threads: int | None = None,
) -> NqzFile:
    """Open a file that is already in memory; see :func:`safe_open`."""
    return NqzFile(content, limits=limits, verify=verify, bfloat16=bfloat16, threads=threads)


def load(
    content: bytes | memoryview,
    *,
    limits: Limits | None = None,
    bfloat16: str = "ml_dtypes",
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Decode every tensor of a file in memory; see :func:`load_file`."""
    chosen = limits or Limits()
    with from_bytes(content, limits=chosen, bfloat16=bfloat16, threads=threads) as file:
        total = sum(file.info(name).plain_bytes for name in file)
        if total > chosen.materialised_bytes:
            raise LimitExceededError(f"tensors take {total} bytes decoded, limit {chosen.materialised_bytes}")
        file.verify_checksums()
        return dict(file.tensors())


def load_file(
    path: str | os.PathLike[str],
    *,
    limits: Limits | None = None,
    bfloat16: str = "ml_dtypes",
    threads: int | None = None,
) -> dict[str, np.ndarray]:
    """Read and decode every tensor of a file; the whole file is checked first.

    Parameters
    ----------
    path : path-like
    limits, bfloat16, threads
        As for :func:`safe_open`.

    Returns
    -------
    dict of str to ndarray
        In file order.

    Raises
    ------
    OSError, FormatError, UnsupportedVersionError, UnsupportedFeatureError
    """
    with open(path, "rb") as stream:
        check_magic(stream.peek(HEADER_BYTES))  # a device or pipe of other bytes may have no end
        return load(stream.read(), limits=limits, bfloat16=bfloat16, threads=threads)
