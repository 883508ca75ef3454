"""Loops over arrays of some axes, written as instructions: Numba takes long for statements, LLVM does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from .emitter import I64, Emitter


def parameter(e: Emitter, block: Any, place: int) -> Any:
    """Return a place of a parameter block."""
    return e.load(I64, block, 8 * place)


@contextmanager
def items(e: Emitter, block: Any) -> Iterator[Any]:
    """Repeat the body for the items from the block's first to its last place; yields their numbers."""
    first, last = parameter(e, block, 0), parameter(e, block, 1)
    with e.loop(e.builder.sub(last, first)) as i:
        yield e.builder.add(first, i)


def three_axes(e: Emitter, number: Any, n_middle: Any, n_inner: Any) -> tuple[Any, Any, Any]:
    """Return the places along three axes of an item, the last two of so many elements."""
    b = e.builder
    rest = b.udiv(number, n_inner)
    return b.udiv(rest, n_middle), b.urem(rest, n_middle), b.urem(number, n_inner)


def moved(e: Emitter, address: Any, places: Sequence[Any], steps: Sequence[Any]) -> Any:
    """Return an address moved by places times bytes."""
    for place, step in zip(places, steps, strict=True):
        address = e.builder.add(address, e.builder.mul(place, step))
    return address


def parameters(e: Emitter, block: Any, first: int, count: int) -> list[Any]:
    """Return some places of a parameter block."""
    return [parameter(e, block, first + k) for k in range(count)]
