"""Memory in which a plan runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from nqformat.kernels.objects import KernelLibrary
from nqruntime.kernels.blocks import MEET, PROGRAM
from nqruntime.packing.areas import address, aligned
from nqruntime.team import TEAM, yield_address

from .plan import PlacedRows, Plan, Step

_SECONDS = 0.002
_FEWEST, _MOST = 3, 25
_STOPPED = -(1 << 62)


class Context:
    """Memory for one run of a plan at a time.

    Parameters
    ----------
    plan : Plan
    shapes : sequence of tuple of int
        Of the outputs.
    library : KernelLibrary
    shared : bool
        Whether the plan's threads share each run.
    """

    def __init__(
        self, plan: Plan, shapes: Sequence[tuple[int, ...]], library: KernelLibrary, *, shared: bool
    ) -> None:
        self._plan = plan
        self._library = library
        self._arena = aligned(plan.arena_floats, np.float32)
        place = address(self._arena)
        threads = range(plan.n_threads) if shared and plan.n_threads > 1 else range(0)
        self._words = np.stack(
            [plan.placed_words(place), *(plan.thread_words(place, thread) for thread in threads)]
        )
        self._copied: list[tuple[int, np.ndarray]] = []
        self._borrowed: list[tuple[int, np.ndarray, np.ndarray]] = []
        for i, value in enumerate(plan.inputs):
            if plan.is_borrowed(value):
                places = plan.words_of(value)
                self._borrowed.append((i, places, self._words[:, places]))
            else:
                self._copied.append((i, self._floats(value).reshape(value.layout.shape)))
        self._kept: list[np.ndarray] = []
        self._meeting = np.zeros(2, dtype=np.int64)
        self._alone = self._program(0, meet=0)
        self._parts = [self._program(thread + 1, meet=len(threads)) for thread in threads]
        self._shapes = tuple(shapes)
        self._computed: list[tuple[int, np.ndarray]] = []
        self._made: list[tuple[int, np.ndarray, np.ndarray]] = []
        for i, value in enumerate(plan.outputs):
            if plan.is_borrowed(value):
                places = plan.words_of(value)
                self._made.append((i, places, self._words[:, places]))
            else:
                self._computed.append((i, self._floats(value).reshape(self._shapes[i], copy=False)))
        self._is_simple = not (self._borrowed or self._made or self._parts)

    def _program(self, row: int, *, meet: int) -> Callable[[], int]:
        """Return what runs the steps with a row of the words, meeting other threads after each."""
        plan = self._plan
        blocks = address(self._words[row]) + 8 * plan.starts[:-1]
        steps = [(step.kernel, int(block)) for step, block in zip(plan.steps, blocks, strict=True)]
        if meet:
            state = address(self._meeting)
            meeting = np.array([state, meet, yield_address()], dtype=np.int64)
            self._kept.append(meeting)
            steps = [entry for step in steps for entry in (step, (MEET, address(meeting)))]
        program = np.array(steps, dtype=np.int64)
        block = np.array([len(steps), address(program)], dtype=np.int64)
        self._kept += [program, block]
        return self._library.prepare(PROGRAM, address(block))

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
        if self._is_simple:
            self._check(self._alone())
            return tuple([area.copy() for _, area in self._computed])
        kept = []
        for i, places, offsets in self._borrowed:
            array = np.ascontiguousarray(arrays[i])
            kept.append(array)
            self._words[:, places] = offsets + address(array)
        outputs: list[Any] = [None] * len(self._shapes)
        for i, places, offsets in self._made:
            outputs[i] = new_output(self._shapes[i])
            self._words[:, places] = offsets + address(outputs[i])
        statuses = TEAM.run(self._parts, self._stop) if self._parts else None
        self._check(self._alone() if statuses is None else min(statuses))
        for i, area in self._computed:
            outputs[i] = area.copy()
        return tuple(outputs)

    @staticmethod
    def _check(status: int) -> None:
        if status != 0:
            raise AssertionError(f"a kernel refused its block with status {status}")

    def fill(self, value: float) -> None:
        """Let every value be `value`, for a trial."""
        self._arena[:] = value

    def _stop(self) -> None:
        """End the waiting of threads that have begun; the context runs on one thread from now on."""
        self._meeting[1] = _STOPPED
        self._parts = []

    def step_seconds(self, arrays: Sequence[np.ndarray]) -> list[tuple[Step, float]]:
        """Run once, and return the shortest time of each step on one thread."""
        held = [np.ascontiguousarray(array) for array in arrays]
        outputs = self.run(held)  # the steps read and write the same memory again
        blocks = address(self._words[0]) + 8 * self._plan.starts[:-1]
        found = [
            (step, best_seconds(self._library.prepare(step.kernel, int(block))))
            for step, block in zip(self._plan.steps, blocks, strict=True)
        ]
        del outputs
        return found


def new_output(shape: tuple[int, ...]) -> np.ndarray:
    """Return memory that becomes the caller's."""
    return np.empty(shape, dtype=np.float32)


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
