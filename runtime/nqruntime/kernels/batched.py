"""Products of two computed matrices, many pairs of them: no weights, any distances between elements.

32 columns of the second matrix are copied to a buffer that stays in the cache, transposed if they lie along
the sum, and multiplied with tiles of rows of the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nqformat.kernels.memory import load_parameter
from nqformat.kernels.words import U0, U1, U4, U8, U64, helper

from .copies import transpose_square
from .emitter import LANES, VECTOR, Emitter, kernel_intrinsic
from .lanes import first_lanes, less, load_lanes, store_lanes

_PANEL_VECTORS = 2
_PANEL_BYTES = 4 * LANES * _PANEL_VECTORS
_LANES = U64(LANES)
_PANEL = U64(LANES * _PANEL_VECTORS)
_PITCH = U64(_PANEL_BYTES)


def _emit_panel(e: Emitter, *arguments: Any) -> None:
    """Copy rows of up to 32 floats: rows, columns, source, bytes from row to row, out."""
    rows, columns, source, pitch, out = arguments
    b = e.builder
    parts = [first_lanes(e, less(e, columns, e.number(LANES * r))) for r in range(_PANEL_VECTORS)]
    with e.loop(rows) as i:
        place, target = b.add(source, b.mul(i, pitch)), b.add(out, b.mul(i, e.number(_PANEL_BYTES)))
        for r, lanes in enumerate(parts):
            e.store(load_lanes(e, place, lanes, 4 * LANES * r), target, 4 * LANES * r)


def _emit_tile(n_sources: int) -> Callable[..., None]:
    """Return the writer of a tile: inputs, panel, source, its pitch, out, its pitch, columns, factor."""

    def emit(e: Emitter, *arguments: Any) -> None:
        inputs, panel, source, pitch, out, out_pitch, columns, factor = arguments
        b = e.builder
        sources, targets = [source], [out]
        for _ in range(1, n_sources):
            sources.append(b.add(sources[-1], pitch))
            targets.append(b.add(targets[-1], out_pitch))
        sums = [[e.variable(e.zeros()) for _ in range(_PANEL_VECTORS)] for _ in range(n_sources)]
        with e.loop(inputs) as i:
            place, moved = b.add(panel, b.mul(i, e.number(_PANEL_BYTES))), b.shl(i, e.number(2))
            weights = [e.load(VECTOR, place, 4 * LANES * r) for r in range(_PANEL_VECTORS)]
            for row, totals in zip(sources, sums, strict=True):
                x = e.load_splat(b.add(row, moved))
                for weight, total in zip(weights, totals, strict=True):
                    b.store(e.multiply_add(weight, x, b.load(total)), total)
        scale = e.load_splat(factor)
        for r in range(_PANEL_VECTORS):
            lanes = first_lanes(e, less(e, columns, e.number(LANES * r)))
            for target, totals in zip(targets, sums, strict=True):
                place = b.add(target, e.number(4 * LANES * r))
                store_lanes(e, b.fmul(b.load(totals[r]), scale), place, lanes)

    return emit


_copy_panel = kernel_intrinsic(_emit_panel, 5)
_tile_of_1, _tile_of_4, _tile_of_8 = (kernel_intrinsic(_emit_tile(n), 8) for n in (1, 4, 8))
_FACTOR = U64(8 * 25)


@helper
def _fill_panel(block, source, columns, panel):  # type: ignore[no-untyped-def]
    """Copy the columns of a panel, each input's after the other's."""
    inputs = load_parameter(block, 6)
    step = load_parameter(block, 20)
    column_step = load_parameter(block, 21)
    if column_step == U4:
        _copy_panel(inputs, columns, source, step, panel)
        return
    first = U0
    while first < inputs:
        column = U0
        while column < _PANEL:
            left = columns - column if column < columns else U0
            place = source + column * column_step + first * step
            target = panel + first * _PITCH + (column << np.uint64(2))
            transpose_square(left, inputs - first, _LANES, place, column_step, target, _PITCH)
            column += _LANES
        first += _LANES


@helper
def multiply_batches(block):  # type: ignore[no-untyped-def]
    """Multiply pairs of matrices, 32 columns after 32 columns; the block vouches for every area."""
    item = load_parameter(block, 0)
    inputs = load_parameter(block, 6)
    n_middle = load_parameter(block, 8)
    n_inner = load_parameter(block, 9)
    pitch = load_parameter(block, 19)
    out_pitch = load_parameter(block, 22)
    n_panels = load_parameter(block, 23)
    panel = load_parameter(block, 24)
    factor = block + _FACTOR
    while item < load_parameter(block, 1):
        first = item % n_panels * _PANEL
        pair = item // n_panels
        inner = pair % n_inner
        middle = pair // n_inner % n_middle
        outer = pair // n_inner // n_middle
        columns = load_parameter(block, 7) - first
        source = load_parameter(block, 3) + outer * load_parameter(block, 13)
        source += middle * load_parameter(block, 14) + inner * load_parameter(block, 15)
        _fill_panel(block, source + first * load_parameter(block, 21), columns, panel)
        source = load_parameter(block, 2) + outer * load_parameter(block, 10)
        source += middle * load_parameter(block, 11) + inner * load_parameter(block, 12)
        out = load_parameter(block, 4) + outer * load_parameter(block, 16)
        out += (
            middle * load_parameter(block, 17) + inner * load_parameter(block, 18) + (first << np.uint64(2))
        )
        rows = load_parameter(block, 5)
        while rows > U0:
            taken = U1
            if rows >= U8:
                taken = U8
                _tile_of_8(inputs, panel, source, pitch, out, out_pitch, columns, factor)
            elif rows >= U4:
                taken = U4
                _tile_of_4(inputs, panel, source, pitch, out, out_pitch, columns, factor)
            else:
                _tile_of_1(inputs, panel, source, pitch, out, out_pitch, columns, factor)
            source += taken * pitch
            out += taken * out_pitch
            rows -= taken
        item += U1
    return np.int64(0)
