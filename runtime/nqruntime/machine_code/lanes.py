"""Operations on parts of a vector: masks and first lanes; imported on compilation only."""

from __future__ import annotations

from typing import Any

from .emitter import INDICES, VECTOR, Emitter


def mask_lanes(e: Emitter, value: Any, mask: Any, offset: int = 0) -> Any:
    """Return the floats `value` with the bits kept that the 16 i32 at `mask` + `offset` have set."""
    bits = e.builder.and_(e.builder.bitcast(value, INDICES), e.load(INDICES, mask, offset))
    return e.builder.bitcast(bits, VECTOR)
