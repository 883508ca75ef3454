"""Element by element on planes: a factor and an addend a channel, a second value, limits."""

from __future__ import annotations

from typing import Any

import numpy as np

from nqformat.kernels.memory import load_parameter
from nqformat.kernels.words import U0, U1, U2, helper

from .emitter import VECTOR, Emitter, kernel_intrinsic
from .lanes import mask_lanes
from .planes import HIGH, LOW, clear_margins


def _emit_channel(e: Emitter, *arguments: Any) -> None:
    """Compute a channel: parameter block, vectors, source, out, factor, addend, second value or 0, mask."""
    block, vectors, source, out, factor, addend, second, mask = arguments
    b = e.builder
    low, high = e.load_splat(block, LOW), e.load_splat(block, HIGH)
    factors, addends = e.load_splat(factor), e.load_splat(addend)
    has_second = b.icmp_unsigned("!=", second, e.number(0))
    with e.loop(vectors) as i:
        moved = b.shl(i, e.number(6))
        value = e.variable(e.multiply_add(factors, e.load(VECTOR, b.add(source, moved)), addends))
        with e.when(has_second):
            b.store(b.fadd(b.load(value), e.load(VECTOR, b.add(second, moved))), value)
        clamped = e.clamp(b.load(value), low, high)
        e.store(mask_lanes(e, clamped, b.add(mask, moved)), b.add(out, moved))


_scale_channel = kernel_intrinsic(_emit_channel, 8)


@helper
def scale_channels(block):  # type: ignore[no-untyped-def]
    """Scale, shift, add and clamp channels; the block vouches for every area."""
    first = load_parameter(block, 0)
    last = load_parameter(block, 1)
    n_images = load_parameter(block, 2)
    n_vectors = load_parameter(block, 8)
    mask = load_parameter(block, 9)
    image = U0
    while image < n_images:
        clear_margins(block, first, last, image)
        channel = first
        while channel < last:
            source = load_parameter(block, 3) + image * load_parameter(block, 4)
            source += channel * load_parameter(block, 18)
            out = load_parameter(block, 5) + image * load_parameter(block, 7)
            out += channel * load_parameter(block, 6)
            second = load_parameter(block, 13)
            if second != U0:
                second += image * load_parameter(block, 15) + channel * load_parameter(block, 14)
            factor = load_parameter(block, 19) + image * load_parameter(block, 20) + (channel << U2)
            addend = load_parameter(block, 10) + (channel << U2)
            _scale_channel(block, n_vectors, source, out, factor, addend, second, mask)
            channel += U1
        image += U1
    return np.int64(0)
