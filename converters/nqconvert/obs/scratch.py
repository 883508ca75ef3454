"""Arrays beyond a budget of memory, mapped from temporary files."""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
from dataclasses import dataclass, field

import numpy as np

from nqconvert.array_spool import temporary_file_error

__all__ = ["Scratch", "is_mapped", "release"]

_REGION_BYTES = 1 << 26
_SMALL_BYTES = 1 << 14


@dataclass(slots=True)
class _Region:
    """A mapped file that arrays are cut from."""

    pages: mmap.mmap
    n_used: int = 0


@dataclass(slots=True, kw_only=True)
class Scratch:
    """Makes arrays: in memory as far as the budget goes, then mapped from files without a name.

    Arrays share files of 64 MiB, so that thousands of them need few; a file vanishes with the last of its
    arrays. A mapped array is used like any other; :func:`release` takes what was read or written of it out
    of memory. Arrays of up to 16 KiB are never mapped.

    Attributes
    ----------
    budget_bytes : int
        Of arrays in memory at one time, whoever holds them; files take the rest.
    """

    budget_bytes: int
    used_bytes: int = 0
    _region: _Region | None = field(default=None, repr=False)

    def zeros(self, shape: tuple[int, ...], dtype: type[np.generic] = np.float64) -> np.ndarray:
        """Return an array of zeros.

        Raises
        ------
        ConversionError
            If a temporary file cannot be made.
        """
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        if n_bytes <= _SMALL_BYTES or self.used_bytes + n_bytes <= self.budget_bytes:
            self.used_bytes += n_bytes
            return np.zeros(shape, dtype)
        region = self._region
        if region is None or region.n_used + n_bytes > len(region.pages):
            region = self._region = _Region(_mapped_file(max(n_bytes, _REGION_BYTES)))
        array: np.ndarray = np.ndarray(shape, dtype, buffer=region.pages, offset=region.n_used)
        region.n_used += -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        return array

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
        if not is_mapped(array):
            self.used_bytes -= array.nbytes


def _mapped_file(n_bytes: int) -> mmap.mmap:
    """Map a file whose bytes are set aside: writing to a mapping when the disk is full ends the process."""
    try:
        with tempfile.TemporaryFile() as file:
            file.truncate(n_bytes)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            return mmap.mmap(file.fileno(), n_bytes)
    except OSError as error:
        raise temporary_file_error(error) from error


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array lies in a file."""
    return _pages_of(array) is not None


def release(array: np.ndarray) -> None:
    """Take a mapped array's pages out of memory, where the system can; its content stays in the file."""
    pages = _pages_of(array)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        first = np.frombuffer(pages, np.uint8).__array_interface__["data"][0]
        start = array.__array_interface__["data"][0] - first
        start -= start % mmap.PAGESIZE
        with contextlib.suppress(OSError, ValueError):
            pages.madvise(mmap.MADV_DONTNEED, start, array.nbytes)


def _pages_of(array: np.ndarray) -> mmap.mmap | None:
    base = array.base
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, mmap.mmap) else None
