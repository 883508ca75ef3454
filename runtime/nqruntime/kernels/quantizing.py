"""Activations as bytes: q = round(x / scale) + zero, the smallest range that holds all values and zero.

As ONNX's DynamicQuantizeLinear, for each vector or image on its own: what is with it in a batch has no
effect. A value that is not finite makes the scale NaN, and so all that is computed from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir

from nqformat.kernels.memory import load_parameter
from nqformat.kernels.words import U0, U1, U2, U3, U4, helper

from .blocks import LANES
from .emitter import F32, I8, I32, VECTOR, Emitter, kernel_intrinsic
from .integers import less_bits, quantized, reduce_lanes, rounded
from .lanes import first_lanes, load_lanes

_LEVELS = 255.0


def _smaller(e: Emitter) -> Callable[[Any, Any], Any]:
    return lambda a, b: e.builder.select(e.builder.fcmp_ordered("<", a, b), a, b)


def _larger(e: Emitter) -> Callable[[Any, Any], Any]:
    return lambda a, b: e.builder.select(e.builder.fcmp_ordered(">", a, b), a, b)


def _sum(e: Emitter) -> Callable[[Any, Any], Any]:
    found: Callable[[Any, Any], Any] = e.builder.fadd
    return found


def _emit_range(e: Emitter, *arguments: Any) -> None:
    """Find smallest and largest of some floats and zero, and a sum that is NaN if one is not finite.

    The arguments: floats, source, and where to store the three.
    """
    n, source, out = arguments
    b = e.builder
    state = [e.variable(e.zeros()) for _ in range(3)]
    ways = [_smaller(e), _larger(e), _sum(e)]

    def take(value: Any) -> None:
        for held, way, new in zip(state, ways, (value, value, b.fmul(value, e.zeros())), strict=True):
            b.store(way(new, b.load(held)), held)

    full = b.lshr(n, e.number(4))
    with e.loop(full) as i:
        take(e.load(VECTOR, b.add(source, b.shl(i, e.number(6)))))
    left = b.and_(n, e.number(LANES - 1))
    with e.when(b.icmp_unsigned("!=", left, e.number(0))):
        take(load_lanes(e, b.add(source, b.shl(full, e.number(6))), first_lanes(e, left)))
    for k, (held, way) in enumerate(zip(state, ways, strict=True)):
        e.store(reduce_lanes(e, b.load(held), way), out, 4 * k)


def _emit_scale(e: Emitter, *arguments: Any) -> None:
    """Turn ranges into a scale: number of ranges, the ranges, and where to store scale and zero point."""
    count, ranges, out = arguments
    b = e.builder
    state = [e.variable(ir.Constant(F32, 0.0)) for _ in range(3)]
    with e.loop(count) as i:
        place = b.add(ranges, b.shl(i, e.number(4)))
        for k, (held, way) in enumerate(zip(state, (_smaller(e), _larger(e), _sum(e)), strict=True)):
            b.store(way(e.load(F32, place, 4 * k), b.load(held)), held)
    low, high, fault = (b.load(held) for held in state)
    span = b.fsub(high, low)
    levels, nothing = ir.Constant(F32, _LEVELS), ir.Constant(F32, 0.0)
    divisor = b.select(b.fcmp_ordered(">", span, nothing), span, levels)
    zero = b.fmul(b.fneg(low), b.fdiv(levels, divisor))
    zero = b.select(b.fcmp_ordered("<", zero, levels), zero, levels)
    e.store(b.fadd(b.fdiv(span, levels), fault), out)
    e.store(rounded(e, zero)[1], out, 4)
    e.store(b.fdiv(levels, divisor), out, 8)


def _limits(e: Emitter, table: Any) -> tuple[Any, ...]:
    """Return what `quantized` takes besides the values."""
    b = e.builder
    zero = e.load(I32, table, 4)
    low = b.fneg(b.sitofp(zero, F32))
    high = b.fadd(low, ir.Constant(F32, _LEVELS))
    return e.load_splat(table, 8), e.splat(low), e.splat(high), less_bits(e, zero)


def _emit_vector(e: Emitter, *arguments: Any) -> None:
    """Quantize a vector to bytes, whole groups of 16: floats, source, table, out."""
    n, source, table, out = arguments
    b = e.builder
    limits = _limits(e, table)
    with e.loop(b.lshr(b.add(n, e.number(LANES - 1)), e.number(4))) as i:
        first = b.shl(i, e.number(4))
        lanes = first_lanes(e, b.sub(n, first))
        found = quantized(e, load_lanes(e, b.add(source, b.shl(first, e.number(2))), lanes), *limits)
        e.store(b.trunc(found, ir.VectorType(I8, LANES)), b.add(out, first))


def _emit_channels(e: Emitter, *arguments: Any) -> None:
    """Quantize four channels to the bytes of one word a position.

    The arguments: vectors, first channel's source, bytes to the second, third and fourth, table, out.
    """
    vectors, source, *moved, table, out = arguments
    b = e.builder
    limits = _limits(e, table)
    sources = [source, *(b.add(source, distance) for distance in moved)]
    with e.loop(vectors) as i:
        line = b.shl(i, e.number(6))
        word = e.zeros(less_bits(e, ir.Constant(I32, 0)).type)
        for k, channel in enumerate(sources):
            found = quantized(e, e.load(VECTOR, b.add(channel, line)), *limits)
            word = b.or_(word, b.shl(found, ir.Constant(found.type, [8 * k] * LANES)))
        e.store(word, b.add(out, line))


_find_range = kernel_intrinsic(_emit_range, 3)
_find_scale = kernel_intrinsic(_emit_scale, 3)
_quantize_vector = kernel_intrinsic(_emit_vector, 4)
_quantize_four = kernel_intrinsic(_emit_channels, 7)


@helper
def quantize_rows(block):  # type: ignore[no-untyped-def]
    """Quantize vectors; the block vouches for every area."""
    vector = load_parameter(block, 0)
    n = load_parameter(block, 4)
    while vector < load_parameter(block, 1):
        source = load_parameter(block, 2) + vector * load_parameter(block, 3)
        table = load_parameter(block, 7) + (vector << U4)
        _find_range(n, source, table)
        _find_scale(U1, table, table)
        _quantize_vector(n, source, table, load_parameter(block, 5) + vector * load_parameter(block, 6))
        vector += U1
    return np.int64(0)


@helper
def find_ranges(block):  # type: ignore[no-untyped-def]
    """Find the range of each channel; the block vouches for every area."""
    image = U0
    n = load_parameter(block, 6) << U4
    while image < load_parameter(block, 2):
        channel = load_parameter(block, 0)
        while channel < load_parameter(block, 1):
            source = load_parameter(block, 3) + image * load_parameter(block, 4)
            source += channel * load_parameter(block, 5)
            place = image * load_parameter(block, 8) + channel
            _find_range(n, source, load_parameter(block, 7) + (place << U4))
            channel += U1
        image += U1
    return np.int64(0)


@helper
def quantize_planes(block):  # type: ignore[no-untyped-def]
    """Quantize channels in groups of four; the block vouches for every area."""
    n_channels = load_parameter(block, 8)
    step = load_parameter(block, 5)
    image = U0
    while image < load_parameter(block, 2):
        group = load_parameter(block, 0)
        own = load_parameter(block, 13) + (image << U4)
        if group < load_parameter(block, 1):
            _find_scale(n_channels, load_parameter(block, 7) + ((image * n_channels) << U4), own)
        if group == U0:
            _find_scale(
                n_channels,
                load_parameter(block, 7) + ((image * n_channels) << U4),
                load_parameter(block, 12) + (image << U4),
            )
        while group < load_parameter(block, 1):
            first = group << U2
            left = n_channels - first
            source = load_parameter(block, 3) + image * load_parameter(block, 4) + first * step
            second = step if left > U1 else U0
            third = step + step if left > U2 else U0
            fourth = step * U3 if left > U3 else U0
            out = load_parameter(block, 9) + image * load_parameter(block, 11)
            out += group * load_parameter(block, 10)
            _quantize_four(load_parameter(block, 6), source, second, third, fourth, own, out)
            group += U1
        image += U1
    return np.int64(0)
