"""Operations on parts of a vector: masks, first lanes, every n-th lane; imported on compilation only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from .blocks import LANES
from .emitter import F32, I1, I32, INDICES, VECTOR, Emitter

_MASK = ir.VectorType(I1, LANES)
_ALIGNMENT = ir.Constant(I32, 4)


def mask_lanes(e: Emitter, value: Any, mask: Any, offset: int = 0) -> Any:
    """Return the floats `value` with the bits kept that the 16 i32 at `mask` + `offset` have set."""
    bits = e.builder.and_(e.builder.bitcast(value, INDICES), e.load(INDICES, mask, offset))
    return e.builder.bitcast(bits, VECTOR)


def lane_numbers() -> Any:
    """Return the i32 vector 0, 1, ..., 15."""
    return ir.Constant(INDICES, list(range(LANES)))


def at_most(e: Emitter, a: Any, b: Any) -> Any:
    """Return the smaller of two unsigned i64."""
    return e.builder.select(e.builder.icmp_unsigned("<", a, b), a, b)


def less(e: Emitter, a: Any, b: Any) -> Any:
    """Return a - b of two unsigned i64, or 0 if that is below."""
    return e.builder.sub(a, at_most(e, a, b))


def first_lanes(e: Emitter, count: Any) -> Any:
    """Return the i1 vector of the lanes whose number is below the i64 `count`."""
    few = e.builder.trunc(at_most(e, count, e.number(LANES)), I32)
    return e.builder.icmp_unsigned("<", lane_numbers(), e.splat(few))


def keep(e: Emitter, value: Any, lanes: Any) -> Any:
    """Return `value` with zeros outside of `lanes`."""
    return e.builder.select(lanes, value, e.zeros())


def load_lanes(e: Emitter, address: Any, lanes: Any, offset: int = 0) -> Any:
    """Load those floats of a vector that are in `lanes`, zeros elsewhere; no other memory is read."""
    place = e.builder.inttoptr(e.builder.add(address, e.number(offset)), VECTOR.as_pointer())
    kinds = [place.type, I32, _MASK, VECTOR]
    function = declare(e, "llvm.masked.load.v16f32.p0", VECTOR, kinds)
    return e.builder.call(function, [place, _ALIGNMENT, lanes, e.zeros()])


def store_lanes(e: Emitter, value: Any, address: Any, lanes: Any) -> None:
    """Store those floats of a vector that are in `lanes`; no other memory is written."""
    place = e.builder.inttoptr(address, VECTOR.as_pointer())
    function = declare(e, "llvm.masked.store.v16f32.p0", ir.VoidType(), [VECTOR, place.type, I32, _MASK])
    e.builder.call(function, [value, place, _ALIGNMENT, lanes])


def larger(e: Emitter, a: Any, b: Any) -> Any:
    """Return the larger floats of two vectors, NaN if one is."""
    found = e.builder.select(e.builder.fcmp_ordered(">", a, b), a, b)
    return e.builder.select(e.builder.fcmp_unordered("uno", a, a), a, found)


def pick(e: Emitter, a: Any, b: Any, numbers: Sequence[int]) -> Any:
    """Return the lanes `numbers` of two vectors after one another."""
    return e.builder.shuffle_vector(a, b, ir.Constant(INDICES, list(numbers)))


def load_every_second(e: Emitter, address: Any) -> Any:
    """Load the floats 0, 2, ..., 30."""
    first, second = e.load(VECTOR, address), e.load(VECTOR, address, 4 * LANES)
    return pick(e, first, second, range(0, 2 * LANES, 2))


def first_of_pairs(e: Emitter, count: Any) -> tuple[Any, Any]:
    """Return the lanes of two vectors that hold the floats 0, 2, ..., 2 * count - 2 of at most 32."""
    floats = less(e, e.builder.shl(count, e.number(1)), e.number(1))
    return first_lanes(e, floats), first_lanes(e, less(e, floats, e.number(LANES)))


def load_every_second_lane(e: Emitter, address: Any, lanes: tuple[Any, Any]) -> Any:
    """Load the floats 0, 2, ..., 30 as far as they are in `lanes`, zeros elsewhere."""
    first, second = load_lanes(e, address, lanes[0]), load_lanes(e, address, lanes[1], 4 * LANES)
    return pick(e, first, second, range(0, 2 * LANES, 2))


def load_spread(e: Emitter, address: Any, step: Any, lanes: Any) -> Any:
    """Load the floats lane * step, those in `lanes`; the others are zero and not read."""
    numbers = e.builder.mul(lane_numbers(), e.splat(e.builder.trunc(step, I32)))
    return keep(e, e.gather(address, e.builder.select(lanes, numbers, e.zeros(INDICES))), lanes)


def transposed(e: Emitter, rows: list[Any]) -> list[Any]:
    """Return the columns of 16 vectors: in four passes, parts of 1 to 8 lanes of pairs change place."""
    distance = 1
    while distance < LANES:
        low = [k for base in range(0, LANES, 2 * distance) for k in _halves(base, distance)]
        high = [k + distance for k in low]
        found = list(rows)
        for r in range(LANES):
            if r & distance == 0:
                pair = rows[r], rows[r + distance]
                found[r], found[r + distance] = pick(e, *pair, low), pick(e, *pair, high)
        rows = found
        distance *= 2
    return rows


def _halves(base: int, distance: int) -> list[int]:
    return [base + k for k in range(distance)] + [LANES + base + k for k in range(distance)]


def declare(e: Emitter, name: str, result: Any, kinds: Sequence[Any]) -> Any:
    """Return an LLVM intrinsic."""
    module = e.builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, list(kinds)), name)


def constant_vector(value: float) -> Any:
    """Return a vector of one number."""
    return ir.Constant(VECTOR, [ir.Constant(F32, value)] * LANES)


def look_up_among_256(e: Emitter, tables: list[Any], indices: Any) -> Any:
    """Return floats of a table in 16 vectors by i32 indices below 256; needs AVX-512.

    Pairs of vectors give a candidate each, and each further bit of the index chooses between two of them.
    """
    b = e.builder
    kinds = [VECTOR, INDICES, VECTOR]
    permute = declare(e, "llvm.x86.avx512.vpermi2var.ps.512", VECTOR, kinds)
    found = [b.call(permute, [tables[k], indices, tables[k + 1]]) for k in range(0, len(tables), 2)]
    bit = 2 * LANES
    while len(found) > 1:
        is_set = b.icmp_unsigned("!=", b.and_(indices, ir.Constant(INDICES, [bit] * LANES)), e.zeros(INDICES))
        found = [b.select(is_set, found[k + 1], found[k]) for k in range(0, len(found), 2)]
        bit *= 2
    return found[0]


def one_of(writers: dict[int, Callable[..., None]]) -> Callable[..., None]:
    """Return a writer whose first argument, an i64, says which of `writers` gets the others.

    The choice is made in the instructions, as calls from many branches take Numba long to compile.
    """

    def emit(e: Emitter, number: Any, *arguments: Any) -> None:
        for key, writer in writers.items():
            with e.when(e.builder.icmp_unsigned("==", number, e.number(key))):
                writer(e, *arguments)

    return emit
