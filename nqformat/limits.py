"""Limits that a reader enforces before it allocates (spec 9)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field


def _default_materialised_bytes() -> int:
    """Return min(64 GiB, half of the machine's memory)."""
    ceiling = 64 << 30
    try:
        ram = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return ceiling
    return min(ceiling, ram // 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Upper bounds for one call of a reader.

    Attributes
    ----------
    materialised_bytes : int
        Bytes of decoded arrays that one call may allocate; default min(64 GiB, half of RAM).
    directory_bytes : int
        Bytes of the inflated directory.
    graph_bytes, metadata_bytes : int
        Bytes of the inflated graph and metadata.
    n_tensors : int
        Number of tensors in one file.
    """

    materialised_bytes: int = field(default_factory=_default_materialised_bytes)
    directory_bytes: int = 16 << 20
    graph_bytes: int = 256 << 20
    metadata_bytes: int = 16 << 20
    n_tensors: int = 1 << 20


MAX_RANK = 8
MAX_NAME_BYTES = 1024
MAX_ELEMENTS = 1 << 60
"""Of a tensor, dims of 0 left out of the product, so that NumPy can hold the shape."""
