"""CRC-32 of each page of a file, checked as pages are touched (spec 2.2)."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Iterable

from .errors import CorruptError

MIN_PAGE_LOG2 = 12
DEFAULT_PAGE_LOG2 = 16


def n_pages(n_bytes: int, page_log2: int) -> int:
    """Pages that `n_bytes` take."""
    return -(-n_bytes >> page_log2)


def page_checksums(body: bytes, page_log2: int) -> list[int]:
    """Return the CRC-32 of each page of `body`."""
    return checksums_of_pieces([body], page_log2)


def checksums_of_pieces(pieces: Iterable[bytes], page_log2: int) -> list[int]:
    """Return the CRC-32 of each page of a body that comes in pieces of any length."""
    found: list[int] = []
    checksum, room = 0, 1 << page_log2
    for piece in pieces:
        view = memoryview(piece)
        while view.nbytes:
            checksum = zlib.crc32(view[:room], checksum)
            taken = min(room, view.nbytes)
            view, room = view[taken:], room - taken
            if not room:
                found.append(checksum)
                checksum, room = 0, 1 << page_log2
    return found if room == 1 << page_log2 else [*found, checksum]


class PageVerifier:
    """Checks each page of the body at most once, before its bytes are used.

    Parameters
    ----------
    buffer : memoryview
        The whole file.
    body_start_abs : int
        First byte after the directory.
    checksums : sequence of int
    page_log2 : int
    enabled : bool
        False skips all checks.
    """

    def __init__(
        self,
        buffer: memoryview,
        body_start_abs: int,
        checksums: list[int],
        page_log2: int,
        *,
        enabled: bool = True,
    ) -> None:
        self._buffer = buffer
        self._start = body_start_abs
        self._checksums = checksums
        self._page_log2 = page_log2
        self._seen = bytearray(len(checksums))
        self._enabled = enabled
        self._lock = threading.Lock()

    def check(self, start_abs: int, stop_abs: int) -> None:
        """Verify every page that bytes ``start_abs:stop_abs`` touch; CorruptError names the page."""
        if not self._enabled or stop_abs <= start_abs:
            return
        first = (start_abs - self._start) >> self._page_log2
        last = (stop_abs - 1 - self._start) >> self._page_log2
        for page in range(first, last + 1):
            if not self._seen[page]:
                self._check_page(page)

    def _check_page(self, page: int) -> None:
        begin = self._start + (page << self._page_log2)
        end = min(begin + (1 << self._page_log2), len(self._buffer))
        if zlib.crc32(self._buffer[begin:end]) != self._checksums[page]:
            raise CorruptError(f"checksum of page {page} differs", section="PAGE", offset_abs=begin)
        with self._lock:
            self._seen[page] = 1

    def check_all(self) -> None:
        """Verify the whole body."""
        self.check(self._start, len(self._buffer))
