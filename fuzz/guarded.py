"""Memory that ends where an unreadable page begins: a read beyond the input ends the process."""

from __future__ import annotations

import ctypes
import mmap

PAGE = mmap.PAGESIZE


class GuardedInput:
    """Room for inputs of up to `room` bytes, each placed so that it ends at a forbidden page.

    Where the system cannot forbid pages, inputs are handed on unguarded.
    """

    def __init__(self, room: int = 1 << 16) -> None:
        n_pages = -(-room // PAGE)
        self._end = n_pages * PAGE
        self._area = mmap.mmap(-1, self._end + PAGE)
        first = ctypes.c_char.from_buffer(self._area)
        library = ctypes.CDLL(None, use_errno=True)
        self.is_guarded = hasattr(library, "mprotect") and not library.mprotect(
            ctypes.c_void_p(ctypes.addressof(first) + self._end), ctypes.c_size_t(PAGE), 0
        )
        self._view = memoryview(self._area)

    def place(self, content: bytes) -> bytes | memoryview:
        """Return the bytes, ending at the forbidden page; valid until the next call."""
        start = self._end - len(content)
        if not self.is_guarded or start < 0:
            return content
        self._area[start : self._end] = content
        return self._view[start : self._end].toreadonly()
