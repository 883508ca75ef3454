"""What commands print, and how they read values from the command line."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nqconvert.search import SEARCHING


class StageLines:
    """Progress on standard error: one line that is rewritten on a terminal, plain lines with ``-v``.

    The tries of a search stay, on a terminal or not, unless ``--quiet`` is given.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._quiet = arguments.quiet
        self._live = sys.stderr.isatty() and not arguments.quiet
        self._plain = arguments.verbose > 0 and not arguments.quiet and not self._live
        self._started = time.perf_counter()

    def __call__(self, line: str) -> None:
        """Show one stage."""
        elapsed = time.perf_counter() - self._started
        stays = line.startswith(SEARCHING) and not self._quiet
        if self._live:
            end = "\n" if stays else ""
            print(f"\r\033[K[{elapsed:6.1f} s] {line}", end=end, file=sys.stderr, flush=True)
        elif self._plain or stays:
            print(f"[{elapsed:6.1f} s] {line}", file=sys.stderr, flush=True)

    def done(self) -> None:
        """Clear the live line."""
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def emit(arguments: argparse.Namespace, text: str, as_json: dict[str, Any]) -> None:
    """Print the result as text, or as one JSON object with ``--json``."""
    if arguments.json:
        print(json.dumps(as_json, indent=2, allow_nan=False))
    elif not arguments.quiet:
        print(text)


def load_object(reference: str) -> Any:
    """Import ``package.module:name``; ValueError if there is no such thing."""
    module_name, _, attribute = reference.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{reference!r} must be written as package.module:name")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"cannot import {module_name!r}: {error}") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ValueError(f"module {module_name!r} has no {attribute!r}")
        found = getattr(found, part)
    return found


def call_object(reference: str) -> Any:
    """Import ``package.module:name`` and call it without arguments."""
    factory: Callable[[], Any] = load_object(reference)
    if not callable(factory):
        raise ValueError(f"{reference!r} cannot be called")
    return factory()


def read_arrays(text: str) -> Any:
    """Read example inputs.

    Parameters
    ----------
    text : str
        Path of an .npy file (one input), of an .npz file (inputs by name), or ``shape=1,1,28,28`` or
        ``shape=1,128:int64`` for random numbers of a fixed seed.

    Raises
    ------
    ValueError
        If the text is none of these or the file is damaged.
    """
    if text.startswith("shape="):
        return _random_array(text.removeprefix("shape="))
    path = Path(text)
    if not path.exists():
        raise FileNotFoundError(2, "no such file", str(path))
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no .npy or .npz file of plain arrays: {error}") from None


def read_calibration(text: str) -> Any:
    """Read calibration data as :func:`read_arrays`; an entry ``targets`` of an .npz file holds labels."""
    arrays = read_arrays(text)
    if isinstance(arrays, dict) and "targets" in arrays:
        targets = arrays.pop("targets")
        inputs = next(iter(arrays.values())) if len(arrays) == 1 else arrays
        return inputs, targets
    return next(iter(arrays.values())) if isinstance(arrays, dict) and len(arrays) == 1 else arrays


def _random_array(text: str) -> np.ndarray:
    dims, _, dtype_name = text.partition(":")
    try:
        shape = tuple(int(dim) for dim in dims.split(","))
        dtype = np.dtype(dtype_name or "float32")
    except (ValueError, TypeError):
        raise ValueError(f"shape={text} must read like shape=1,3,32,32 or shape=1,128:int64") from None
    rng = np.random.default_rng(0)
    if dtype.kind in "iu":
        return rng.integers(0, 10, size=shape).astype(dtype)
    return rng.normal(size=shape).astype(dtype)


def finite_or_none(number: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return number if math.isfinite(number) else None
