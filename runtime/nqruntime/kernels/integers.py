"""Arithmetic on bytes and 32-bit integers in vectors; imported on compilation only.

The results are the same on every processor: sums of products of bytes are exact, and nothing here lets a
multiplication and an addition of floats be rounded together.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import config

from .blocks import LANES
from .emitter import F32, I8, I16, I32, INDICES, VECTOR, Emitter
from .lanes import constant_vector, pick

BYTES = ir.VectorType(I8, 4 * LANES)
"""Four bytes for each lane."""

NUMBER_TO_BITS = 12582912.0
"""1.5 * 2**23: a float of magnitude below 2**22 that is added to it becomes an integer, half to even."""

_BITS = 0x4B400000
_PAIRS = ir.VectorType(I16, 2 * LANES)


def _has(feature: str) -> bool:
    """Whether kernels are compiled for a processor with a feature."""
    features = config.CPU_FEATURES
    if features is None:
        return config.CPU_NAME is None and bool(llvm.get_host_cpu_features().get(feature, False))
    return f"+{feature}" in features.split(",")


def _splat(kind: Any, value: int) -> Any:
    return ir.Constant(kind, [value] * kind.count)


def _halves(e: Emitter, value: Any, kind: Any, bits: int) -> tuple[Any, Any]:
    """Return the sign-extended low and high halves of every element."""
    shift = _splat(kind, bits)
    low = e.builder.ashr(e.builder.shl(value, shift), shift)
    return low, e.builder.ashr(value, shift)


def add_products(e: Emitter, total: Any, unsigned: Any, signed: Any) -> Any:
    """Add to each of 16 i32 the products of its four pairs of bytes.

    Parameters
    ----------
    total : vector of 16 i32
    unsigned, signed : vector of 16 i32
        Four bytes a lane.
    """
    b = e.builder
    if _has("avx512vnni"):
        kind = ir.FunctionType(INDICES, [INDICES] * 3)
        module, name = b.module, "llvm.x86.avx512.vpdpbusd.512"
        return b.call(module.globals.get(name) or ir.Function(module, kind, name), [total, unsigned, signed])
    shift = _splat(_PAIRS, 8)
    numbers, factors = b.bitcast(unsigned, _PAIRS), b.bitcast(signed, _PAIRS)
    even = b.mul(b.and_(numbers, _splat(_PAIRS, 255)), _halves(e, factors, _PAIRS, 8)[0])
    odd = b.mul(b.lshr(numbers, shift), _halves(e, factors, _PAIRS, 8)[1])
    for products in (even, odd):  # at most 255 * 128 in magnitude: they fit 16 bits
        for half in _halves(e, b.bitcast(products, INDICES), INDICES, 16):
            total = b.add(total, half)
    return total


def look_up_bytes(e: Emitter, table: Any, numbers: Any) -> Any:
    """Return bytes of a 16-entry table, which fills every 16 bytes of `table`, by numbers below 16."""
    b = e.builder
    if _has("avx512bw"):
        kind = ir.FunctionType(BYTES, [BYTES] * 2)
        module, name = b.module, "llvm.x86.avx512.pshuf.b.512"
        return b.call(module.globals.get(name) or ir.Function(module, kind, name), [table, numbers])
    found = e.zeros(BYTES)
    for k in range(16):
        entry = b.shuffle_vector(table, table, ir.Constant(ir.VectorType(I32, 4 * LANES), [k] * 4 * LANES))
        found = b.select(b.icmp_unsigned("==", numbers, _splat(BYTES, k)), entry, found)
    return found


def quantized(e: Emitter, values: Any, inverse: Any, low: Any, high: Any, zero: Any) -> Any:
    """Return round(values * inverse) between low and high, plus an integer; NaN counts as low.

    Parameters
    ----------
    values, inverse : vector of 16 floats
    low, high : vector of 16 floats
        Integers between -255 and 255.
    zero : vector of 16 i32
        The integer, less the bits of NUMBER_TO_BITS.
    """
    b = e.builder
    scaled = b.fmul(values, inverse)
    scaled = b.select(b.fcmp_ordered(">", scaled, low), scaled, low)
    scaled = b.select(b.fcmp_ordered("<", scaled, high), scaled, high)
    return b.add(b.bitcast(b.fadd(scaled, constant_vector(NUMBER_TO_BITS)), INDICES), zero)


def reduce_lanes(e: Emitter, value: Any, combine: Any) -> Any:
    """Return the float that `combine` (of two vectors) makes of all lanes."""
    distance = LANES // 2
    while distance:
        moved = pick(e, value, value, [(lane + distance) % LANES for lane in range(LANES)])
        value = combine(value, moved)
        distance //= 2
    return e.builder.extract_element(value, ir.Constant(I32, 0))


def rounded(e: Emitter, number: Any) -> tuple[Any, Any]:
    """Return a float scalar below 2**22 in magnitude rounded to an integer: as a float and as an i32."""
    b = e.builder
    moved = b.fadd(number, ir.Constant(F32, NUMBER_TO_BITS))
    return b.fsub(moved, ir.Constant(F32, NUMBER_TO_BITS)), b.sub(
        b.bitcast(moved, I32), ir.Constant(I32, _BITS)
    )


def less_bits(e: Emitter, zero: Any) -> Any:
    """Return the i32 `zero` as `quantized` takes it."""
    return e.splat(e.builder.sub(zero, ir.Constant(I32, _BITS)))


def scaled_sums(e: Emitter, total: Any, sums_of_weights: Any, factors: Any, table: Any) -> Any:
    """Return what sums of products stand for: (total - zero * sums of weights) * (factors * scale).

    Parameters
    ----------
    total, sums_of_weights : vector of 16 i32
    factors : vector of 16 floats
    table : i64
        Address of the scale (float) and the zero point (int32) of the source.
    """
    b = e.builder
    scale, zero = e.load_splat(table), e.splat(e.load(I32, table, 4))
    difference = b.sub(total, b.mul(zero, sums_of_weights))
    return b.fmul(b.sitofp(difference, VECTOR), b.fmul(factors, scale))
