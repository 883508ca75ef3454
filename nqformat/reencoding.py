"""Check of a file against itself: what is decoded and encoded again gives the stored bytes (spec 4.5)."""

from __future__ import annotations

import numpy as np

from .errors import CorruptError, UnsupportedFeatureError
from .reader import NqzFile
from .streams import StreamKind, StreamRecord, SymbolSlice, encode_stream

__all__ = ["check_streams", "scan_starts"]


def check_streams(file: NqzFile) -> int:
    """Decode every stream, encode its numbers again and compare bytes; returns how many there are.

    The format leaves an encoder no choice once mapping, table and chunks are fixed, so any difference is a
    fault of the file, of the decoder or of the machine. Memory: the numbers of one stream at a time.

    Raises
    ------
    CorruptError
        If a stream has other bytes than its numbers encode to.
    FormatError, UnsupportedFeatureError
        If it cannot be decoded.
    """
    directory = file.directory
    slices: dict[int, list[np.ndarray]] = {i: [] for i in range(len(directory.streams))}
    parts = sorted(directory.slices.values(), key=lambda part: (part.stream, part.index))
    at = 0
    for number, stream in enumerate(directory.streams):
        if isinstance(stream, str):
            raise UnsupportedFeatureError(stream)
        while at < len(parts) and parts[at].stream == number:
            slices[number].append(file.slice_numbers(parts[at]))
            at += 1
        if _encoded(file, stream, slices.pop(number)) != file.payload(stream):
            raise CorruptError(
                f"stream {number} has other bytes than its numbers encode to",
                section="STREAM",
                offset_abs=stream.payload_start_abs,
            )
    return len(directory.streams)


def _encoded(file: NqzFile, stream: StreamRecord, numbers: list[np.ndarray]) -> bytes:
    code = None if stream.table is None else file.directory.tables[stream.table]
    if isinstance(code, str):
        raise UnsupportedFeatureError(code)
    is_gaps = stream.kind is StreamKind.GAPS
    slices = [SymbolSlice(values=n, starts=scan_starts(n) if is_gaps else None) for n in numbers]
    return encode_stream(stream, code, slices)


def scan_starts(gaps: np.ndarray) -> np.ndarray:
    """Scan position before each gap of a slice."""
    ends = np.cumsum(gaps.astype(np.int64) + 1)
    return np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]]) if gaps.size else ends
