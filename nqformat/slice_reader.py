"""The slices that tensors take from streams: chunk indexes, chunks, and those that several share (spec 4)."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from .coded_slice import CodedSlice, Piece
from .decoding import decode_bytes
from .directory import Directory, StreamSlice
from .errors import CorruptError, UnsupportedFeatureError
from .grouping import GroupMapping
from .streams import ChunkEntry, Code, StreamRecord, decode_chunk, read_chunk_index
from .tensor_records import TensorRecord
from .workers import Workers


class SliceReader:
    """Finds and decodes the slices of one file's streams.

    Parameters
    ----------
    directory : Directory
    bytes_at : callable
        Checked bytes of the file, by offset and length.
    workers : Workers
    """

    def __init__(
        self, directory: Directory, bytes_at: Callable[[int, int], memoryview], workers: Workers
    ) -> None:
        self._directory = directory
        self._bytes_at = bytes_at
        self._workers = workers
        self._numbers = {record.name: i for i, record in enumerate(directory.tensors)}
        self._indexes: dict[int, list[ChunkEntry]] = {}
        self._pieces: dict[int, list[list[Piece]]] = {}
        self._last_chunk: dict[int, tuple[int, list[np.ndarray]]] = {}
        self._lock = threading.Lock()

    def slice_of(self, record: TensorRecord, role: str) -> StreamSlice:
        """Return a tensor's slice of a stream by its role, such as ``values``."""
        return self._directory.slices[self._numbers[record.name], role]

    def of(self, record: TensorRecord, role: str, start: int = 0, stop: int | None = None) -> CodedSlice:
        """Return what decodes a tensor's slice by its role, or the chunks with its numbers ``start:stop``."""
        return self.coded(record.name, self.slice_of(record, role), start, stop)

    def coded(self, name: str, part: StreamSlice, start: int = 0, stop: int | None = None) -> CodedSlice:
        """Return what decodes numbers ``start:stop`` of a slice: all chunks that hold some of them."""
        stop = part.n_elements if stop is None else stop
        stream = self._directory.streams[part.stream]
        if isinstance(stream, str):
            raise UnsupportedFeatureError(stream)
        code: Code | str | None = None if stream.table is None else self._directory.tables[stream.table]
        if isinstance(code, str):
            raise UnsupportedFeatureError(code)
        pieces = []
        if stop > start:
            for piece in self._pieces_of(part, stream):
                if piece.start < stop and piece.stop > start:
                    pieces.append(piece)
        return CodedSlice(name=name, stream=part.stream, record=stream, code=code, pieces=pieces, source=self)

    def checked(self, start_abs: int, n_bytes: int) -> memoryview:
        """Return bytes of the file after checking their pages."""
        return self._bytes_at(start_abs, n_bytes)

    def chunk_numbers(self, stream: int, piece: Piece) -> np.ndarray:
        """Return the decoded numbers of one slice in one chunk."""
        record = self._directory.streams[stream]
        assert isinstance(record, StreamRecord)
        code = None if record.table is None else self._directory.tables[record.table]
        assert not isinstance(code, str)
        return self._chunk(stream, piece.number, record, code, piece.entry)[piece.place]

    def numbers(self, name: str, part: StreamSlice) -> np.ndarray:
        """All numbers of a slice: uint8, or int64 with hybrid mapping."""
        coded = self.coded(name, part)
        if isinstance(coded.record.mapping, GroupMapping):
            narrow = np.empty(part.n_elements, dtype=np.uint8)
            decode_bytes(coded, narrow, self._workers)
            return narrow
        numbers = np.empty(part.n_elements, dtype=np.int64)
        for piece, found in coded.numbers():
            numbers[piece.start : piece.stop] = found
        return numbers

    def forget_chunks(self) -> None:
        """Drop the chunks that are kept because several tensors share them."""
        with self._lock:
            self._last_chunk.clear()

    def _pieces_of(self, part: StreamSlice, record: StreamRecord) -> list[Piece]:
        """Pieces of a slice, in order."""
        with self._lock:
            pieces = self._pieces.get(part.stream)
        if pieces is None:
            pieces = [[] for _ in self._directory.slice_lengths[part.stream]]
            for number, entry in enumerate(self._chunk_index(part.stream, record)):
                for place, span in enumerate(entry.span.parts):
                    alone = len(entry.span.parts) == 1
                    pieces[span.slice_index].append(Piece(number, entry, place, span.start, span.stop, alone))
            with self._lock:
                self._pieces[part.stream] = pieces
        return pieces[part.index]

    def _chunk_index(self, stream: int, record: StreamRecord) -> list[ChunkEntry]:
        entries = self._indexes.get(stream)
        if entries is None:
            lengths = self._directory.slice_lengths[stream]
            if sum(length >> record.chunk_log2 for length in lengths) > record.payload_bytes:
                raise CorruptError(
                    "more chunks than bytes", section="STREAM", offset_abs=record.payload_start_abs
                )
            payload = self._bytes_at(record.payload_start_abs, record.payload_bytes)
            entries = self._indexes[stream] = read_chunk_index(record, payload, lengths)
        return entries

    def _chunk(
        self, stream: int, number: int, record: StreamRecord, code: Code | None, entry: ChunkEntry
    ) -> list[np.ndarray]:
        """Decode a chunk; one that several tensors share is kept until another of its stream is wanted."""
        with self._lock:
            kept = self._last_chunk.get(stream)
        if kept is not None and kept[0] == number:
            return kept[1]
        base_abs = record.payload_start_abs + entry.start_off
        parts = decode_chunk(record, code, entry, self._bytes_at(base_abs, entry.n_bytes), base_abs)
        if len(entry.span.parts) > 1:
            with self._lock:
                self._last_chunk[stream] = (number, parts)
        return parts
