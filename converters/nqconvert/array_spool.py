"""Arrays in one temporary file, for what is too much to stay in memory."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np

from nqformat.errors import ConversionError

__all__ = ["ArraySpool", "Kept", "temporary_file_error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """An array in a spool.

    Attributes
    ----------
    array : ndarray or None
        Itself, if it stayed in memory.
    start : int
        Place in the file, in bytes.
    dtype : numpy.dtype
    shape : tuple of int
    """

    array: np.ndarray | None = None
    start: int = 0
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the array."""
        return self.dtype.itemsize * int(np.prod(self.shape, dtype=np.int64))


class ArraySpool:
    """Keeps arrays: in memory as far as the budget goes, then in a file that goes with this object.

    What was dropped makes room for arrays of as many bytes. The file has no name where the system allows
    that, and is in the folder that :mod:`tempfile` takes (``TMPDIR``).

    Parameters
    ----------
    budget_bytes : int
        Of arrays in memory.
    small_bytes : int
        Arrays of up to so many bytes stay in memory and do not count.

    Examples
    --------
    >>> spool = ArraySpool(budget_bytes=0)
    >>> kept = spool.put(np.arange(3))
    >>> spool.get(kept)
    array([0, 1, 2])
    """

    def __init__(self, *, budget_bytes: int, small_bytes: int = 0) -> None:
        self._left, self._small = budget_bytes, small_bytes
        self._file: Any = None
        self._n_bytes = 0
        self._free: dict[int, list[int]] = {}

    def put(self, array: np.ndarray) -> Kept:
        """Keep an array; one that stays in memory is not copied.

        Raises
        ------
        ConversionError
            If the file cannot be written, for example because the disk is full.
        """
        found = Kept(dtype=array.dtype, shape=array.shape)
        n_bytes = found.n_bytes
        if n_bytes <= self._small:
            return Kept(array=array, dtype=array.dtype, shape=array.shape)
        if n_bytes <= self._left:
            self._left -= n_bytes
            return Kept(array=array, dtype=array.dtype, shape=array.shape)
        slots = self._free.get(n_bytes)
        start = slots.pop() if slots else self._n_bytes
        self._n_bytes = max(self._n_bytes, start + n_bytes)
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 (goes with this object)
            self._file.seek(start)
            left = memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise temporary_file_error(error) from error
        return Kept(start=start, dtype=array.dtype, shape=array.shape)

    def get(self, kept: Kept) -> np.ndarray:
        """Return a kept array: itself if it is in memory, else a new one."""
        if kept.array is not None:
            return kept.array
        array = np.empty(kept.shape, kept.dtype)
        left = memoryview(array.reshape(-1).view(np.uint8))
        self._file.seek(kept.start)
        while left:
            n_read = self._file.readinto(left)
            if not n_read:
                raise ConversionError("a temporary file is shorter than what was written to it")
            left = left[n_read:]
        return array

    def drop(self, kept: Kept) -> None:
        """Forget a kept array."""
        if kept.array is None:
            self._free.setdefault(kept.n_bytes, []).append(kept.start)
        elif kept.n_bytes > self._small:
            self._left += kept.n_bytes


def temporary_file_error(error: OSError) -> ConversionError:
    """Return what to raise where a temporary file cannot be made or written."""
    return ConversionError(
        f"cannot keep intermediate results in {tempfile.gettempdir()}: {error.strerror or error}; "
        "set TMPDIR to a folder with more room"
    )
