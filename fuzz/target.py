"""What a reader is put through with one input, and how its answer is judged."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np

import nqformat
from nqformat.accounting import account
from nqformat.errors import FormatError, UnsupportedFeatureError, UnsupportedVersionError
from nqruntime.graph_reader import read_model

ALLOWED = (FormatError, UnsupportedFeatureError, UnsupportedVersionError)
MATERIALISED_BYTES = 4 << 20
LIMITS = nqformat.Limits(
    materialised_bytes=MATERIALISED_BYTES,
    directory_bytes=1 << 20,
    graph_bytes=1 << 20,
    metadata_bytes=1 << 18,
    n_tensors=1000,
)


def read_everything(content: bytes | memoryview, *, verify: bool = True) -> dict[str, Any]:
    """Open a file and read all that it holds, each item by itself.

    Returns
    -------
    dict
        For ``file`` (if it cannot be opened), ``graph``, ``metadata``, ``model`` and each tensor the name of
        the error class, or a digest of what was read.

    Raises
    ------
    Exception
        Whatever the reader may not raise.
    """
    found: dict[str, Any] = {}
    try:
        file = nqformat.from_bytes(content, limits=LIMITS, verify=verify, bfloat16="uint16", threads=1)
    except ALLOWED as error:
        return {"file": type(error).__name__}
    with file:
        found["metadata"] = _outcome(file.metadata)
        found["graph"] = _outcome(file.graph)
        graph = found["graph"]
        if isinstance(graph, bytes):
            found["model"] = _outcome(lambda: read_model(graph))
        for name in file:
            _read_tensor(file, name, found)
    return found


def _read_tensor(file: nqformat.NqzFile, name: str, found: dict[str, Any]) -> None:
    """Read one tensor whole, as a part of its rows and packed; the ways must agree on what is readable."""
    info = file.info(name)
    whole = found[f"tensor {name}"] = _outcome(lambda: file.get_tensor(name))
    if isinstance(whole, tuple) and info.shape and info.shape[0] > 1:
        rows = _outcome(lambda: file.get_slice(name, 1, info.shape[0]))
        item_bytes = len(whole[2]) // max(info.n_elements, 1)
        skipped = item_bytes * (info.n_elements // info.shape[0])
        assert isinstance(rows, str) or rows[2] == whole[2][skipped:], (
            "a slice of rows differs from the tensor"
        )
    _outcome(lambda: file.get_packed(name))


def inspect(content: bytes | memoryview) -> str:
    """Measure a file as ``nqz inspect`` does; returns the name of the error class, or ``read``."""
    try:
        with nqformat.from_bytes(content, limits=LIMITS, bfloat16="uint16", threads=1) as file:
            account(file)
    except ALLOWED as error:
        return type(error).__name__
    return "read"


def _outcome(read: Callable[[], Any]) -> Any:
    try:
        found = read()
    except ALLOWED as error:
        return type(error).__name__
    if isinstance(found, np.ndarray):
        return found.shape, found.dtype.str, found.tobytes()
    return found


def verdict(found: dict[str, Any]) -> str:
    """One word for what was found: the error of the file, ``read``, or ``partly`` where items are refused."""
    if "file" in found:
        return str(found["file"])
    return "partly" if any(isinstance(item, str) for item in found.values()) else "read"


def with_kernels(choice: str) -> None:
    """Make the reader take its ``numpy`` or ``numba`` path."""
    os.environ["NQFORMAT_KERNELS"] = choice
