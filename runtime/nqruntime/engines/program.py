"""Steps of a graph in order, on values in numbered slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from nqformat.errors import FormatError, LimitExceededError
from nqruntime.lowering.context import best_seconds
from nqruntime.operators import Run

ABSENT = -1
_RUN_ERRORS = (ValueError, TypeError, IndexError, KeyError, ArithmeticError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One node, ready to run.

    Attributes
    ----------
    run : callable
    label : str
        Node and operator, for messages.
    inputs, outputs : tuple of int
        Slots of values; -1 for one that is left out.
    node : int
        Place in the graph; of the first node, if the step is several.
    node_seconds : callable, optional
        If the step is several nodes: times each on such inputs, by its place in the graph.
    """

    run: Run
    label: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    node: int
    node_seconds: Callable[..., dict[int, float]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The steps that some outputs need, each with the slots that no later step reads."""

    steps: tuple[tuple[Step, tuple[int, ...]], ...]
    results: tuple[int, ...]

    def execute(self, values: list[np.ndarray | None]) -> None:
        """Run the steps on the values of all slots, dropping what is not needed any more."""
        for step, released in self.steps:
            _run_step(step, values)
            for slot in released:
                values[slot] = None

    def node_seconds(self, values: list[np.ndarray | None]) -> dict[int, float]:
        """Run each step some times, in order; the shortest times by place in the graph."""
        found: dict[int, float] = {}
        for step, released in self.steps:
            best = best_seconds(partial(_run_step, step, values))
            arrays = [None if slot == ABSENT else values[slot] for slot in step.inputs]
            inner = step.node_seconds(*arrays) if step.node_seconds is not None else {}
            found.update(inner or {step.node: best})
            for slot in released:
                values[slot] = None
        return found


def _run_step(step: Step, values: list[np.ndarray | None]) -> None:
    arrays = [None if slot == ABSENT else values[slot] for slot in step.inputs]
    try:
        result = step.run(*arrays)
    except FormatError:
        raise
    except MemoryError as error:
        raise LimitExceededError(f"{step.label} needs more memory than there is", section="GRAPH") from error
    except _RUN_ERRORS as error:
        raise FormatError(f"{step.label} cannot run: {error}", section="GRAPH") from error
    produced = result if isinstance(result, tuple) else (result,)
    for slot, array in zip(step.outputs, produced, strict=False):
        if slot != ABSENT:
            values[slot] = np.asarray(array)


def plan_program(
    steps: Sequence[Step], results: tuple[int, ...], initial: Sequence[np.ndarray | None]
) -> Program:
    """Select the steps that lead to `results`, and find where each value is read last."""
    needed = set(results)
    selected: list[Step] = []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            selected.append(step)
            needed.update(slot for slot in step.inputs if slot != ABSENT)
    kept = {slot for slot, value in enumerate(initial) if value is not None} | set(results) | {ABSENT}
    planned: list[tuple[Step, tuple[int, ...]]] = []
    for step in selected:
        released = tuple({slot for slot in step.inputs + step.outputs if slot not in kept})
        kept.update(released)
        planned.append((step, released))
    return Program(steps=tuple(reversed(planned)), results=results)
