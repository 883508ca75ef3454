"""Arrays beyond a budget of memory, kept in temporary files."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from dataclasses import dataclass

import numpy as np

__all__ = ["Scratch", "release"]


@dataclass(slots=True, kw_only=True)
class Scratch:
    """Makes arrays: in memory as far as the budget goes, then mapped from files without a name.

    The files vanish with the arrays. A mapped array is used like any other; :func:`release` takes what was
    read or written of it out of memory.

    Attributes
    ----------
    budget_bytes : int
        Of arrays in memory at one time, whoever holds them; files take the rest.
    """

    budget_bytes: int
    used_bytes: int = 0

    def zeros(self, shape: tuple[int, ...], dtype: type[np.generic] = np.float64) -> np.ndarray:
        """Return an array of zeros."""
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if n_bytes == 0 or self.used_bytes + n_bytes <= self.budget_bytes:
            self.used_bytes += n_bytes
            return np.zeros(shape, dtype)
        with tempfile.TemporaryFile() as file:
            return np.memmap(file, dtype=dtype, mode="w+", shape=shape)

    def kept(self, array: np.ndarray) -> np.ndarray:
        """Return a copy of an array, out of memory if the budget is used up; the same if it is not."""
        if self.used_bytes + array.nbytes <= self.budget_bytes:
            self.used_bytes += array.nbytes
            return array
        made = self.zeros(array.shape, array.dtype.type)
        made[...] = array
        release(made)
        return made

    def forget(self, array: np.ndarray) -> None:
        """Give an array's memory back to the budget, when it is no longer used."""
        if not isinstance(array, np.memmap):
            self.used_bytes -= array.nbytes


def release(array: np.ndarray) -> None:
    """Take a mapped array's pages out of memory, where the system can; its content stays in the file."""
    mapped = getattr(array, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        with contextlib.suppress(OSError, ValueError):
            mapped.madvise(mmap.MADV_DONTNEED)
