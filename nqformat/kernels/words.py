"""Numbers, compiler settings and small loads that the kernels share; imported with Numba only."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler

from .blocks import TILE_ELEMENTS
from .memory import copy_bytes, load8, store8, store16, store32, store64, stream_line


class _NoEnvironments:
    """Where Numba would store the Python environment of a helper in memory."""

    def set_env(self, name: str, environment: object) -> None:
        """Do nothing: the kernels have no Python objects."""


class ObjectLibrary(JITCodeLibrary):  # type: ignore[misc]
    """Code that Numba does not load into the process: it ends in an object file."""

    @property
    def codegen(self) -> _NoEnvironments:
        """Where Numba stores environments."""
        return _NoEnvironments()

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def get_pointer_to_function(self, name: str) -> int:
        """Finish the module; the code has no address."""
        self._ensure_finalized()
        return 0


class _LinkedLibrary(ObjectLibrary):
    """Code of a helper: linked into its callers, where it is optimized."""

    def _optimize_final_module(self) -> None:
        pass


class _LinkedCompiler(Compiler):  # type: ignore[misc]
    """Numba's compiler without optimizing and loading each helper, whose code no one calls."""

    def __init__(self, typingctx, targetctx, library, *rest):  # type: ignore[no-untyped-def]
        if library is None:
            library = _LinkedLibrary(targetctx.codegen(), "helper")
        super().__init__(typingctx, targetctx, library, *rest)


_SETTINGS: dict[str, Any] = {
    "error_model": "numpy",
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "pipeline_class": _LinkedCompiler,
}

helper = numba.njit(**_SETTINGS)
"""Compile a function that other kernels call; division by zero does not raise."""

inlined = numba.njit(forceinline=True, **_SETTINGS)
"""The same, inlined wherever it is called."""

U64 = np.uint64
U0, U1, U2, U3, U4, U6, U7, U8 = (np.uint64(i) for i in (0, 1, 2, 3, 4, 6, 7, 8))
U16, U32, U48, U56, U63, U255 = (np.uint64(i) for i in (16, 32, 48, 56, 63, 255))
SENTINEL = np.uint64(1 << 63)
NIBBLE_PAIRS = np.uint64(0x00FF00FF00FF00FF)
BASE_MASK = np.uint64((1 << 56) - 1)
DAMAGED = np.int64(-1)


@helper
def load_tail(source, start, stop):  # type: ignore[no-untyped-def]
    """Up to eight bytes from offset `start`, zero from `stop` on."""
    word = U0
    shift = U0
    while start < stop and shift < U64(64):
        word |= load8(source + start) << shift
        shift += U8
        start += U1
    return word


@inlined
def store_value(out, place, size, value):  # type: ignore[no-untyped-def]
    """Store element `place` of `size` bytes (1, 2, 4 or 8)."""
    if size == U4:
        store32(out + (place << U2), value)
    elif size == U2:
        store16(out + (place << U1), value)
    elif size == U8:
        store64(out + (place << U3), value)
    else:
        store8(out + place, value)


@helper
def move_out(tile, n_bytes, out, streamed):  # type: ignore[no-untyped-def]
    """Copy a finished tile to the result; whole lines past the cache.

    An ordinary store reads its line from memory first. In a result that is much larger than the cache that
    is half of the traffic.
    """
    if streamed == U0:
        copy_bytes(tile, out, n_bytes)
        return
    stop = out + n_bytes
    while out < stop and out & U63 != U0:
        store8(out, load8(tile))
        out += U1
        tile += U1
    while out + U64(64) <= stop:
        stream_line(tile, out)
        out += U64(64)
        tile += U64(64)
    while out < stop:
        store8(out, load8(tile))
        out += U1
        tile += U1


@inlined
def first_tile(out, size):  # type: ignore[no-untyped-def]
    """Elements of `size` bytes in a tile at `out`, such that the next tile begins a line if that can be."""
    return U64(TILE_ELEMENTS) - (out & U63) // size
