"""Products of two computed matrices, many pairs of them: no weights, any distances between elements.

32 columns of the second matrix are copied to a buffer that stays in the cache, transposed if they lie along
the sum, and multiplied with tiles of rows of the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from nqformat.kernels.words import helper

from .arrays import items, moved, parameters, three_axes
from .blocks import LANES
from .copies import emit_square
from .emitter import VECTOR, Emitter, kernel_intrinsic
from .lanes import first_lanes, less, load_lanes, store_lanes

_PANEL_VECTORS = 2
_PANEL_BYTES = 4 * LANES * _PANEL_VECTORS
_TILES = (8, 4, 1)


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
            place, distance = b.add(panel, b.mul(i, e.number(_PANEL_BYTES))), b.shl(i, e.number(2))
            weights = [e.load(VECTOR, place, 4 * LANES * r) for r in range(_PANEL_VECTORS)]
            for row, totals in zip(sources, sums, strict=True):
                x = e.load_splat(b.add(row, distance))
                for weight, total in zip(weights, totals, strict=True):
                    b.store(e.multiply_add(weight, x, b.load(total)), total)
        scale = e.load_splat(factor)
        for r in range(_PANEL_VECTORS):
            lanes = first_lanes(e, less(e, columns, e.number(LANES * r)))
            for target, totals in zip(targets, sums, strict=True):
                place = b.add(target, e.number(4 * LANES * r))
                store_lanes(e, b.fmul(b.load(totals[r]), scale), place, lanes)

    return emit


def _emit_transposed_panel(e: Emitter, *arguments: Any) -> None:
    """Copy a panel whose columns lie along the sum: inputs, columns, source, between columns, out."""
    inputs, columns, source, pitch, out = arguments
    b = e.builder
    groups = b.udiv(b.add(inputs, e.number(LANES - 1)), e.number(LANES))
    with e.loop(b.mul(groups, e.number(_PANEL_VECTORS))) as i:
        group, part = b.udiv(i, e.number(_PANEL_VECTORS)), b.urem(i, e.number(_PANEL_VECTORS))
        first, column = b.shl(group, e.number(4)), b.shl(part, e.number(4))
        place = b.add(b.add(source, b.mul(column, pitch)), b.shl(first, e.number(2)))
        target = b.add(b.add(out, b.mul(first, e.number(_PANEL_BYTES))), b.shl(column, e.number(2)))
        emit_square(
            e, less(e, columns, column), b.sub(inputs, first), e.number(LANES),
            place, pitch, target, e.number(_PANEL_BYTES),
        )  # fmt: skip


def _emit_products(e: Emitter, block: Any) -> None:
    """Multiply the panels of a block."""
    b = e.builder
    first, second, out, rows, inputs, columns, n_middle, n_inner = parameters(e, block, 2, 8)
    first_steps, second_steps, out_steps = (parameters(e, block, place, 3) for place in (10, 13, 16))
    pitch, step, column_step, out_pitch, n_panels, panel = parameters(e, block, 19, 6)
    factor = b.add(block, e.number(8 * 25))
    along_sum = b.icmp_unsigned("!=", column_step, e.number(4))
    with items(e, block) as item:
        places = three_axes(e, b.udiv(item, n_panels), n_middle, n_inner)
        column = b.mul(b.urem(item, n_panels), e.number(LANES * _PANEL_VECTORS))
        left = b.sub(columns, column)
        source = b.add(moved(e, second, places, second_steps), b.mul(column, column_step))
        with b.if_else(along_sum) as (then, otherwise):
            with then:
                _emit_transposed_panel(e, inputs, left, source, column_step, panel)
            with otherwise:
                _emit_panel(e, inputs, left, source, step, panel)
        source = e.variable(moved(e, first, places, first_steps))
        target = e.variable(b.add(moved(e, out, places, out_steps), b.shl(column, e.number(2))))
        remaining = rows
        for n_rows in _TILES:
            count = b.udiv(remaining, e.number(n_rows))
            with e.loop(count):
                tile = _emit_tile(n_rows)
                tile(e, inputs, panel, b.load(source), pitch, b.load(target), out_pitch, left, factor)
                b.store(b.add(b.load(source), b.mul(pitch, e.number(n_rows))), source)
                b.store(b.add(b.load(target), b.mul(out_pitch, e.number(n_rows))), target)
            remaining = b.urem(remaining, e.number(n_rows))


_multiply_batches = kernel_intrinsic(_emit_products, 1)


@helper
def multiply_batches(block):  # type: ignore[no-untyped-def]
    """Multiply pairs of matrices, 32 columns after 32 columns; the block vouches for every area."""
    _multiply_batches(block)
    return np.int64(0)
