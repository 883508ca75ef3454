"""Memory in which a plan runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from nqformat.kernels.objects import KernelLibrary
from nqruntime.machine_code.blocks import PROGRAM
from nqruntime.packing.areas import address, aligned

from .plan import PlacedRows, Plan, Step

_SECONDS = 0.002
_FEWEST, _MOST = 3, 25


class Context:
    """Memory for one run of a plan at a time."""

    def __init__(self, plan: Plan, shapes: Sequence[tuple[int, ...]], library: KernelLibrary) -> None:
        self._plan = plan
        self._arena = aligned(plan.arena_floats, np.float32)
        self._words = plan.placed_words(address(self._arena))
        self._copied: list[tuple[int, np.ndarray]] = []
        self._borrowed: list[tuple[int, np.ndarray, np.ndarray]] = []
        for i, value in enumerate(plan.inputs):
            if plan.is_borrowed(value):
                places = plan.words_of(value)
                self._borrowed.append((i, places, self._words[places]))
            else:
                self._copied.append((i, self._floats(value).reshape(value.layout.shape)))
        program = np.empty((len(plan.steps), 2), dtype=np.int64)
        program[:, 0] = [step.kernel for step in plan.steps]
        program[:, 1] = address(self._words) + 8 * plan.starts[:-1]
        block = np.array([len(plan.steps), address(program)], dtype=np.int64)
        self._kept = program, block
        self._library = library
        self._run = library.prepare(PROGRAM, address(block))
        self._outputs = [
            (self._floats(value), shape) for value, shape in zip(plan.outputs, shapes, strict=True)
        ]

    def _floats(self, value: PlacedRows) -> np.ndarray:
        """Return a value's vectors as they lie in the arena."""
        layout = value.layout
        start = self._plan.arena_offset(value)
        area = self._arena[start : start + max(1, layout.n_vectors) * layout.pitch]
        return area.reshape(-1, layout.pitch)[:, : layout.n_features]

    def run(self, arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        """Compute the outputs."""
        for i, target in self._copied:
            target[...] = arrays[i]
        kept = []
        for i, places, offsets in self._borrowed:
            array = np.ascontiguousarray(arrays[i])
            kept.append(array)
            self._words[places] = offsets + address(array)
        status = self._run()
        if status != 0:
            raise AssertionError(f"a kernel refused its block with status {status}")
        return tuple([area.reshape(shape, copy=True) for area, shape in self._outputs])

    def step_seconds(self) -> list[tuple[Step, float]]:
        """Return the shortest time of each step, on whatever the memory holds."""
        blocks = address(self._words) + 8 * self._plan.starts[:-1]
        return [
            (step, best_seconds(self._library.prepare(step.kernel, int(block))))
            for step, block in zip(self._plan.steps, blocks, strict=True)
        ]


def best_seconds(run: Callable[[], object]) -> float:
    """Return the shortest of several runs, for a few milliseconds."""
    run()
    best, spent, rounds = float("inf"), 0.0, 0
    while rounds < _FEWEST or (spent < _SECONDS and rounds < _MOST):
        started = time.perf_counter()
        run()
        taken = time.perf_counter() - started
        best, spent, rounds = min(best, taken), spent + taken, rounds + 1
    return best
