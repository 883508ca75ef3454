"""Encoded bytes on their way to a file: in memory while they are few, else in a temporary file."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

IN_MEMORY_UP_TO = 1 << 22
_AT_ONCE = 1 << 20


class Spool:
    """Bytes that are appended and read back in blocks; closed, and with that gone, at the end of its block.

    Parameters
    ----------
    folder : Path or None
        Where the temporary file goes, without a name where the system has that. None: everything stays in
        memory.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.SpooledTemporaryFile(  # noqa: SIM115 (closed by __exit__)
            max_size=0 if folder is None else IN_MEMORY_UP_TO, dir=None if folder is None else str(folder)
        )
        self.n_bytes = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def append(self, content: bytes | np.ndarray) -> None:
        """Add bytes, or an array of uint8, at the end."""
        view = memoryview(content) if isinstance(content, bytes) else content.data
        self._file.seek(self.n_bytes)
        for start in range(0, len(view), _AT_ONCE):
            self._file.write(view[start : start + _AT_ONCE])
        self.n_bytes += len(view)

    def since(self, start: int, head: bytes = b"") -> Payload:
        """Return `head` and what was appended from `start` on."""
        return SpooledBytes(spool=self, head=head, start=start, stop=self.n_bytes)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes ``start:stop``."""
        self._file.seek(start)
        return self._file.read(stop - start)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpooledBytes:
    """Bytes of which most lie in a spool."""

    spool: Spool
    head: bytes
    start: int
    stop: int

    def __len__(self) -> int:
        return len(self.head) + self.stop - self.start

    def pieces(self) -> Iterator[bytes]:
        """Yield all bytes, a mebibyte at a time."""
        if self.head:
            yield self.head
        for start in range(self.start, self.stop, _AT_ONCE):
            yield self.spool.read(start, min(start + _AT_ONCE, self.stop))


Payload = bytes | SpooledBytes


def pieces_of(payload: Payload) -> Iterator[bytes]:
    """Yield the bytes of a payload in blocks."""
    if isinstance(payload, SpooledBytes):
        yield from payload.pieces()
    elif payload:
        yield payload
