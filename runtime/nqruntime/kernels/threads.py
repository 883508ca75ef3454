"""Threads that run the same program, each its share of every step, and meet between steps.

A thread that waits spins for a moment, then lets others run. A negative generation ends all waiting: the
caller sets it if a thread cannot start.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from nqformat.kernels.memory import load_parameter
from nqformat.kernels.words import U0, U1, U8, U63, U64, helper

_WORD = ir.IntType(64)
_SPINS = U64(2000)
STOPPED = np.int64(-3)


@intrinsic
def _add_to(typing_context: Any, address: Any, value: Any) -> Any:
    """Add to a word and return what it held before, as one action."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "seq_cst")

    return types.uint64(types.uint64, types.uint64), generate


@intrinsic
def _read(typing_context: Any, address: Any) -> Any:
    """Load a word that another thread may be storing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.load_atomic(place, "seq_cst", 8, typ=_WORD)

    return types.uint64(types.uint64), generate


@intrinsic
def _write(typing_context: Any, address: Any, value: Any) -> Any:
    """Store a word that another thread may be loading."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], _WORD.as_pointer())
        builder.store_atomic(arguments[1], place, "seq_cst", 8)
        return context.get_dummy_value()

    return types.none(types.uint64, types.uint64), generate


@intrinsic
def _call(typing_context: Any, address: Any) -> Any:
    """Call a C function without arguments."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(arguments[0], function.as_pointer()), [])
        return context.get_dummy_value()

    return types.none(types.uint64), generate


@helper
def meet(block):  # type: ignore[no-untyped-def]
    """Wait until all threads are here; STOPPED if they never will be."""
    state = load_parameter(block, 0)
    yield_processor = load_parameter(block, 2)
    generation = _read(state + U8)
    if generation >> U63 != U0:
        return STOPPED
    if _add_to(state, U1) + U1 == load_parameter(block, 1):
        _write(state, U0)
        _write(state + U8, generation + U1)
        return np.int64(0)
    spins = U0
    while _read(state + U8) == generation:
        spins += U1
        if spins > _SPINS and yield_processor != U0:
            _call(yield_processor)
    return np.int64(0)
