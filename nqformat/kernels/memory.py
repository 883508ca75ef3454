"""Loads, stores and bit counts on raw addresses, for kernels without arrays; imported with Numba only.

Kernels that take addresses need neither Numba's array structures nor its runtime, so their object code runs
without Numba. Addresses and all values are uint64; memory is little-endian and accesses need no alignment.
Nothing here checks a bound: each kernel states why its accesses stay inside.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WORD = ir.IntType(64)


def _load(bits: int) -> Any:
    kind = ir.IntType(bits)

    def load(typing_context, address):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            loaded = builder.load(builder.inttoptr(arguments[0], kind.as_pointer()))
            loaded.align = 1
            return loaded if bits == 64 else builder.zext(loaded, _WORD)

        return types.uint64(types.uint64), generate

    return intrinsic(load)


def _store(bits: int) -> Any:
    kind = ir.IntType(bits)

    def store(typing_context, address, value):  # type: ignore[no-untyped-def]
        def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
            low = arguments[1] if bits == 64 else builder.trunc(arguments[1], kind)
            builder.store(low, builder.inttoptr(arguments[0], kind.as_pointer())).align = 1
            return context.get_dummy_value()

        return types.none(types.uint64, types.uint64), generate

    return intrinsic(store)


load8, load16, load32, load64 = _load(8), _load(16), _load(32), _load(64)
store8, store16, store32, store64 = _store(8), _store(16), _store(32), _store(64)


@intrinsic
def load_parameter(typing_context, block, place):  # type: ignore[no-untyped-def]
    """Int64 number `place` of the block at address `block`, as uint64."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        words = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.load(builder.gep(words, [arguments[1]]))

    return types.uint64(types.uint64, types.int64), generate


@intrinsic
def count_leading_zeros(typing_context, value):  # type: ignore[no-untyped-def]
    """Zero bits above the highest set bit; `value` must not be 0."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@intrinsic
def count_ones(typing_context, value):  # type: ignore[no-untyped-def]
    """Set bits of `value`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


@intrinsic
def stream_line(typing_context, source, target):  # type: ignore[no-untyped-def]
    """Copy 64 bytes past the cache; `target`, and only it, is a multiple of 64. See :func:`order_stores`."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        line = ir.VectorType(_WORD, 8).as_pointer()
        loaded = builder.load(builder.inttoptr(arguments[0], line))
        loaded.align = 1
        stored = builder.store(loaded, builder.inttoptr(arguments[1], line))
        stored.align = 64
        hint = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        stored.set_metadata("nontemporal", hint)
        return context.get_dummy_value()

    return types.none(types.uint64, types.uint64), generate


@intrinsic
def order_stores(typing_context):  # type: ignore[no-untyped-def]
    """Make all stores before, also those past the cache, visible before any store after."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), generate


@intrinsic
def copy_bytes(typing_context, source, target, n_bytes):  # type: ignore[no-untyped-def]
    """Copy `n_bytes` with the C library's memcpy; the areas do not overlap."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        byte = ir.IntType(8).as_pointer()
        start, stop = builder.inttoptr(arguments[0], byte), builder.inttoptr(arguments[1], byte)
        cgutils.raw_memcpy(builder, stop, start, arguments[2], 1)
        return context.get_dummy_value()

    return types.none(types.uint64, types.uint64, types.uint64), generate


@intrinsic
def clear_bytes(typing_context, address, n_bytes):  # type: ignore[no-untyped-def]
    """Write `n_bytes` zeros with the C library's memset, which reads nothing into the cache first."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        start = builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())
        cgutils.memset(builder, start, arguments[1], 0)
        return context.get_dummy_value()

    return types.none(types.uint64, types.uint64), generate
