"""Vectors of 16 floats for kernels: LLVM instructions written by Python; imported on compilation only.

An :class:`Emitter` writes into the body of a Numba intrinsic. LLVM splits the vectors for processors whose
registers are shorter; the two operations that need AVX-512 have a plain form, lane by lane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils, config
from numba.extending import intrinsic

from .blocks import LANES

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()
VECTOR = ir.VectorType(F32, LANES)
INDICES = ir.VectorType(I32, LANES)


def has_avx512() -> bool:
    """Whether kernels are compiled for a processor with AVX-512."""
    features = config.CPU_FEATURES
    if features is None:
        if config.CPU_NAME is not None:
            return False
        return bool(llvm.get_host_cpu_features().get("avx512f", False))
    return "+avx512f" in features.split(",")


class Emitter:
    """Writes instructions at the builder's place.

    Addresses and counts are i64 values, one-dimensional offsets are in bytes.
    """

    def __init__(self, builder: Any) -> None:
        self.builder = builder
        self._avx512 = has_avx512()

    def number(self, value: int) -> Any:
        """Return an i64 constant."""
        return ir.Constant(I64, value)

    def zeros(self, kind: Any = VECTOR) -> Any:
        """Return a value of zero bits."""
        return ir.Constant(kind, None)

    def load(self, kind: Any, address: Any, offset: int = 0) -> Any:
        """Load a value of any alignment."""
        loaded = self.builder.load(self._pointer(kind, address, offset), typ=kind)
        loaded.align = 1
        return loaded

    def store(self, value: Any, address: Any, offset: int = 0) -> None:
        """Store a value at any alignment."""
        self.builder.store(value, self._pointer(value.type, address, offset)).align = 1

    def _pointer(self, kind: Any, address: Any, offset: int) -> Any:
        place = self.builder.add(address, self.number(offset)) if offset else address
        return self.builder.inttoptr(place, kind.as_pointer())

    def splat(self, scalar: Any) -> Any:
        """Return a vector with `scalar` in every lane."""
        kind = ir.VectorType(scalar.type, LANES)
        first = self.builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
        return self.builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), self.zeros(INDICES))

    def load_splat(self, address: Any, offset: int = 0) -> Any:
        """Load one float into every lane."""
        return self.splat(self.load(F32, address, offset))

    def multiply_add(self, a: Any, b: Any, c: Any) -> Any:
        """Return a * b + c of vectors, rounded once where the processor can."""
        function = self._declare("llvm.fmuladd.v16f32", VECTOR, [VECTOR] * 3)
        return self.builder.call(function, [a, b, c])

    def widen(self, narrow: Any) -> Any:
        """Return 16 unsigned integers as i32."""
        return self.builder.zext(narrow, INDICES)

    def look_up(self, table: Any, table_address: Any, indices: Any) -> Any:
        """Return floats of a 16-entry table by the low four bits of each index.

        `table` is the table in a register, as loaded from `table_address`.
        """
        if self._avx512:
            function = self._declare("llvm.x86.avx512.permvar.sf.512", VECTOR, [VECTOR, INDICES])
            return self.builder.call(function, [table, indices])
        return self._lane_by_lane(
            table_address, self.builder.and_(indices, ir.Constant(INDICES, [15] * LANES))
        )

    def gather(self, address: Any, indices: Any) -> Any:
        """Return the floats number `indices` at `address`."""
        if not self._avx512:
            return self._lane_by_lane(address, indices)
        mask = ir.VectorType(I1, LANES)
        byte = I8.as_pointer()
        function = self._declare(
            "llvm.x86.avx512.mask.gather.dps.512", VECTOR, [VECTOR, byte, INDICES, mask, I32]
        )
        everything = ir.Constant(mask, [1] * LANES)
        place = self.builder.inttoptr(address, byte)
        arguments = [self.zeros(), place, indices, everything, ir.Constant(I32, 4)]
        return self.builder.call(function, arguments)

    def _declare(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        return cgutils.get_or_insert_function(
            self.builder.module, ir.FunctionType(result, list(arguments)), name
        )

    def _lane_by_lane(self, address: Any, indices: Any) -> Any:
        found = self.zeros()
        for lane in range(LANES):
            place = ir.Constant(I32, lane)
            index = self.builder.zext(self.builder.extract_element(indices, place), I64)
            value = self.load(F32, self.builder.add(address, self.builder.shl(index, self.number(2))))
            found = self.builder.insert_element(found, value, place)
        return found

    def scatter(self, values: Any, address: Any, indices: Any) -> None:
        """Store lane by lane to the floats number `indices` at `address`, the last lane last."""
        for lane in range(LANES):
            place = ir.Constant(I32, lane)
            index = self.builder.zext(self.builder.extract_element(indices, place), I64)
            target = self.builder.add(address, self.builder.shl(index, self.number(2)))
            self.store(self.builder.extract_element(values, place), target)

    def clamp(self, value: Any, low: Any, high: Any) -> Any:
        """Return `value` between the vectors `low` and `high`; NaN stays NaN."""
        value = self.builder.select(self.builder.fcmp_ordered("<", value, low), low, value)
        return self.builder.select(self.builder.fcmp_ordered(">", value, high), high, value)

    def variable(self, initial: Any) -> Any:
        """Return a variable (a pointer that becomes a register), set to `initial` here."""
        return cgutils.alloca_once_value(self.builder, initial)

    @contextmanager
    def loop(self, count: Any) -> Iterator[Any]:
        """Repeat the body `count` times; yields the i64 number of the round."""
        with cgutils.for_range(self.builder, count, intp=I64) as found:
            yield found.index

    @contextmanager
    def when(self, condition: Any) -> Iterator[None]:
        """Run the body if the i1 `condition` holds."""
        with self.builder.if_then(condition):
            yield


def kernel_intrinsic(emit: Callable[..., None], n_arguments: int) -> Any:
    """Turn ``emit(emitter, *arguments)`` into a Numba intrinsic of that many uint64 without a result."""

    def typed() -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            emit(Emitter(builder), *arguments)
            return context.get_dummy_value()

        return types.none(*[types.uint64] * n_arguments), generate

    names = ", ".join(f"a{i}" for i in range(n_arguments))
    scope: dict[str, Any] = {"typed": typed}
    exec(f"def kernel(context, {names}):\n    return typed()", scope)  # Numba counts an intrinsic's arguments
    return intrinsic(scope["kernel"])
