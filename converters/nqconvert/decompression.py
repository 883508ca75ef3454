"""Decoded tensors as a safetensors file."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from nqformat.files import write_atomically
from nqformat.optional_packages import require_package

__all__ = ["save_safetensors"]


def save_safetensors(tensors: Mapping[str, np.ndarray], path: str | os.PathLike[str]) -> int:
    """Write arrays as safetensors, atomically; returns the bytes of the file.

    Raises
    ------
    MissingDependencyError
        If safetensors is not installed.
    OSError
        If the file cannot be written.
    """
    save = require_package("safetensors.numpy").save
    content: bytes = save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
    write_atomically(path, [content])
    return len(content)
