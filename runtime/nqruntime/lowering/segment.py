"""A run of nodes as one call of machine code, with plans for the shapes that have come so far."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from nqformat.kernels.objects import KernelLibrary

from .context import Context
from .convolution import Convolution
from .known import Known, Shapes
from .operation import Operation, Shape
from .plan import Plan, PlanBuilder, Step, UnplannableError
from .plane_choice import PlaneChoice
from .product import Product
from .racing import best_of_each

_FLOAT32 = np.dtype(np.float32)
_MOST_PLANS = 8
_WORTH_SHARING = 100e-6
_GAIN = 0.95

FindFault = Callable[[Sequence[np.ndarray]], tuple[np.ndarray, ...] | None]


class DeclinedError(Exception):
    """Nodes whose values have shapes that the kernels do not take; never leaves the native engine.

    Attributes
    ----------
    nodes : frozenset of int
        Their places in the graph.
    """

    def __init__(self, nodes: frozenset[int]) -> None:
        self.nodes = nodes
        super().__init__(f"nodes {sorted(nodes)} cannot run on such inputs")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A plan, or none for shapes beyond the kernels, with the contexts that no thread uses.

    Attributes
    ----------
    declined : frozenset of int
        Without a plan: the nodes for which there is none.
    shared : bool
        Whether threads that share a run make it faster.
    known : dict of int to ndarray
        Outputs that follow from shapes, by their place.
    """

    plan: Plan | None
    out_shapes: tuple[Shape, ...] = ()
    declined: frozenset[int] = frozenset()
    shared: bool = False
    known: dict[int, np.ndarray] = field(default_factory=dict)
    free: list[Context] = field(default_factory=list)


class Segment:
    """Operations that run together.

    Parameters
    ----------
    operations : sequence of Operation
    inputs, outputs : sequence of str
        Values that come from outside and that are needed outside.
    library : KernelLibrary
    find_fault : callable
        For arrays beyond the kernels: raises what is wrong with them, or returns None; or returns the results
        if these have no elements.
    n_threads : int
        Most threads that share a run.
    most_bytes : int
        Size from which a value is refused: LimitExceededError.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        inputs: Sequence[str],
        outputs: Sequence[str],
        library: KernelLibrary,
        find_fault: FindFault,
        *,
        n_threads: int,
        most_bytes: int,
    ) -> None:
        self.operations = tuple(operations)
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._library = library
        self._find_fault = find_fault
        self._n_threads = n_threads
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._prepared: dict[tuple[Shape, ...], _Prepared] = {}
        read = {name for o in operations if not isinstance(o, Known) for name in o.inputs}
        self._data = tuple(i for i, name in enumerate(self.inputs) if name in read)

    def run(self, *arrays: np.ndarray) -> tuple[np.ndarray, ...]:
        """Compute the outputs; may be called from several threads at once."""
        for i in self._data:
            if arrays[i].dtype != _FLOAT32:
                return self._without_kernels(arrays, self._readers_of_others(arrays))
        shapes = tuple([array.shape for array in arrays])
        prepared = self._prepared.get(shapes) or self._prepare(shapes)
        if prepared.plan is None:
            return self._without_kernels(arrays, prepared.declined)
        try:
            context = prepared.free.pop()
        except IndexError:
            context = Context(prepared.plan, prepared.out_shapes, self._library, shared=prepared.shared)
        results = context.run([arrays[i] for i in self._data])
        prepared.free.append(context)
        return results if not prepared.known else _merged(results, prepared.known)

    def _readers_of_others(self, arrays: Sequence[np.ndarray]) -> frozenset[int]:
        """Return the nodes of the operations that read inputs of another dtype than float32."""
        others = {n for n, array in zip(self.inputs, arrays, strict=True) if array.dtype != _FLOAT32}
        found = [
            o.nodes for o in self.operations if not isinstance(o, Known) and others.intersection(o.inputs)
        ]
        return frozenset(node for nodes in found for node in nodes)

    def _without_kernels(
        self, arrays: Sequence[np.ndarray], declined: frozenset[int]
    ) -> tuple[np.ndarray, ...]:
        results = self._find_fault(arrays)
        if results is None:
            raise DeclinedError(declined)
        return results

    @property
    def weight_bytes(self) -> int:
        """Bytes held for weights."""
        return sum(operation.weight_bytes for operation in self.operations)

    def kernels(self) -> dict[int, str]:
        """Say for each node, by its place in the graph, what computes it."""
        found = {}
        for operation in self.operations:
            first, *others = operation.nodes
            found[first] = operation.label
            found.update((index, f"within #{first}") for index in others)
        return found

    def int8_operations(self) -> list[Operation]:
        """Return the operations that round their inputs to bytes."""
        made = (o for o in self.operations if isinstance(o, Product | Convolution))
        return [operation for operation in made if operation.is_int8]

    def step_seconds(self, *arrays: np.ndarray) -> list[tuple[Step, float]]:
        """Time each step on one thread, for inputs on which the segment has run; empty without a plan."""
        prepared = self._prepared.get(tuple([array.shape for array in arrays]))
        if prepared is None or prepared.plan is None:
            return []
        context = Context(prepared.plan, prepared.out_shapes, self._library, shared=False)
        return context.step_seconds([arrays[i] for i in self._data])

    def node_seconds(self, *arrays: np.ndarray) -> dict[int, float]:
        """Add up :meth:`step_seconds` by the place in the graph of the node they are done for."""
        found = {operation.nodes[0]: 0.0 for operation in self.operations}
        for step, seconds in self.step_seconds(*arrays):
            found[step.node] = found.get(step.node, 0.0) + seconds
        return found

    def _prepare(self, shapes: tuple[Shape, ...]) -> _Prepared:
        with self._lock:
            if shapes not in self._prepared:
                if len(self._prepared) >= _MOST_PLANS:
                    del self._prepared[next(iter(self._prepared))]
                self._prepared[shapes] = self._plan(shapes)
            return self._prepared[shapes]

    def _plan(self, given: tuple[Shape, ...]) -> _Prepared:
        """Make the plan for inputs of some shapes; without one if they are beyond the kernels."""
        shapes = Shapes(dict(zip(self.inputs, given, strict=True)))
        choice = PlaneChoice()
        builder = PlanBuilder(choice, self._n_threads, self._most_bytes)
        read = {name for operation in self.operations for name in operation.inputs}
        builder.last = frozenset(self.outputs) - read
        nodes: list[int] = [node for operation in self.operations for node in operation.nodes]
        try:
            for name in (self.inputs[i] for i in self._data):
                if 0 in shapes[name] or not shapes[name]:
                    raise UnplannableError
                builder.add_input(name, shapes[name])
            for operation in self.operations:
                nodes = operation.nodes
                shapes[operation.output] = operation.shape(shapes)
            for operation in self.operations:
                operation.constrain(choice, shapes)
            for operation in self.operations:
                nodes = operation.nodes
                builder.node = operation.nodes[0]
                operation.lower(builder, shapes)
        except (UnplannableError, ValueError):  # packers refuse what does not fit their fields
            return _Prepared(plan=None, declined=frozenset(nodes))
        known = {i: shapes.known[n] for i, n in enumerate(self.outputs) if n in shapes.known}
        computed = [name for i, name in enumerate(self.outputs) if i not in known]
        plan = builder.finish([self.inputs[i] for i in self._data], computed)
        out_shapes = tuple(shapes[name] for name in computed)
        arrays = [np.zeros(given[i], dtype=np.float32) for i in self._data]
        shared = self._n_threads > 1 and self._gains(plan, out_shapes, arrays)
        return _Prepared(plan=plan, out_shapes=out_shapes, shared=shared, known=known)

    def _gains(self, plan: Plan, out_shapes: tuple[Shape, ...], arrays: list[np.ndarray]) -> bool:
        """Whether threads that share a run make it faster on this machine, now."""
        alone, together = (
            Context(plan, out_shapes, self._library, shared=shared) for shared in (False, True)
        )
        seconds, shared = best_of_each([lambda: alone.run(arrays), lambda: together.run(arrays)])
        return seconds > _WORTH_SHARING and shared < _GAIN * seconds


def _merged(results: tuple[np.ndarray, ...], known: dict[int, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Return all outputs in order."""
    computed = iter(results)
    return tuple(known[i].copy() if i in known else next(computed) for i in range(len(results) + len(known)))
