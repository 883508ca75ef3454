"""Engine that computes from the compressed weights, with NumPy and Numba and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nqformat.dtypes import DType
from nqformat.errors import CorruptError, FormatError, LimitExceededError, UnsupportedFeatureError
from nqruntime.constants import Constant, StoredConstant, inline_constant
from nqruntime.element_types import element_type
from nqruntime.graph import Graph, GraphValue, Model, Node
from nqruntime.kernels import Workers, worth_numba
from nqruntime.operators import MAX_OPSET, NodeContext, Prepared, Run, find_operator
from nqruntime.operators.creation import constant_value
from nqruntime.tensor_file import TensorFile

from .engine import EngineSettings, KernelChoice, node_label, operator_label

_REDUCED_PRECISION = (DType.FLOAT16, DType.BFLOAT16)
_ABSENT = -1
_USES_OF_CONV_WEIGHT = 64
_RUN_ERRORS = (ValueError, TypeError, IndexError, KeyError, ArithmeticError, AttributeError)


class UnsupportedNodesError(UnsupportedFeatureError):
    """Nodes of the graph are beyond the native engine.

    Attributes
    ----------
    reasons : dict of int to str
        Why, by the node's place in the graph.
    """

    def __init__(self, reasons: dict[int, str]) -> None:
        self.reasons = reasons
        super().__init__("; ".join(dict.fromkeys(reasons.values())))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One node, ready to run.

    Attributes
    ----------
    run : callable
    label : str
        Node and operator, for messages.
    inputs, outputs : tuple of int
        Slots of values; -1 for one that is left out.
    """

    run: Run
    label: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Program:
    """The steps that some outputs need, each with the slots that no later step reads."""

    steps: tuple[tuple[_Step, tuple[int, ...]], ...]
    results: tuple[int, ...]


class NativeEngine:
    """A graph run on compressed weights."""

    name = "native"

    def __init__(self, model: Model, file: TensorFile, settings: EngineSettings) -> None:
        _check_model(model)
        builder = _Builder(model, file, settings)
        builder.build()
        self.weight_bytes = builder.weight_bytes
        self._choices = builder.choices
        self._workers = builder.workers
        self._steps = builder.steps
        self._slots = builder.slots
        self._initial = builder.initial_values()
        self._input_slots = {value.name: builder.slots[value.name] for value in model.graph.inputs}
        self._programs: dict[tuple[str, ...], _Program] = {}

    def run(self, output_names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the named outputs."""
        program = self._program(tuple(output_names))
        values = list(self._initial)
        for name, array in feeds.items():
            values[self._input_slots[name]] = array
        lent = {id(value) for value in values if value is not None}
        with np.errstate(all="ignore"):
            for step, released in program.steps:
                _run_step(step, values)
                for slot in released:
                    values[slot] = None
        results: list[np.ndarray] = []
        for slot in program.results:
            value = values[slot]
            assert value is not None
            owned = value.base is None and id(value) not in lent
            results.append(value if owned else value.copy())
            lent.add(id(value))
        return results

    def _program(self, output_names: tuple[str, ...]) -> _Program:
        program = self._programs.get(output_names)
        if program is None:
            results = tuple(self._slots[name] for name in output_names)
            program = self._programs[output_names] = _plan_program(self._steps, results, self._initial)
        return program

    def explain(self) -> list[KernelChoice]:
        """Say for each node which kernel runs it."""
        return list(self._choices)

    def close(self) -> None:
        """Drop the weights and stop the threads."""
        if self._workers is not None:
            self._workers.close()
        self._steps = []
        self._initial = []
        self._programs = {}


def _run_step(step: _Step, values: list[np.ndarray | None]) -> None:
    arrays = [None if slot == _ABSENT else values[slot] for slot in step.inputs]
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
        if slot != _ABSENT:
            values[slot] = np.asarray(array)


def _plan_program(
    steps: Sequence[_Step], results: tuple[int, ...], initial: Sequence[np.ndarray | None]
) -> _Program:
    """Select the steps that lead to `results`, and find where each value is read last."""
    needed = set(results)
    selected: list[_Step] = []
    for step in reversed(steps):
        if needed.intersection(step.outputs):
            selected.append(step)
            needed.update(slot for slot in step.inputs if slot != _ABSENT)
    kept = {slot for slot, value in enumerate(initial) if value is not None} | set(results) | {_ABSENT}
    planned: list[tuple[_Step, tuple[int, ...]]] = []
    for step in selected:
        released = tuple({slot for slot in step.inputs + step.outputs if slot not in kept})
        kept.update(released)
        planned.append((step, released))
    return _Program(steps=tuple(reversed(planned)), results=results)


def _check_model(model: Model) -> None:
    """Refuse what no node can be blamed for."""
    if not 1 <= model.opset <= MAX_OPSET:
        raise UnsupportedFeatureError(
            f"the native engine runs opsets 1 to {MAX_OPSET}, the graph is written for opset {model.opset}"
        )
    if model.graph.sparse_initializers:
        raise UnsupportedFeatureError("the native engine lacks initializers in ONNX's sparse form")
    for value in model.graph.inputs:
        _check_input(value)


def _check_input(value: GraphValue) -> None:
    element = element_type(value.element_number)
    if element is None or element.dtype is None or element.dtype in _REDUCED_PRECISION:
        label = element.label if element else f"ONNX data type {value.element_number}"
        raise UnsupportedFeatureError(f"the native engine does not take input {value.name!r} of {label}")


class _Builder:
    """Turns nodes into steps; used once."""

    def __init__(self, model: Model, file: TensorFile, settings: EngineSettings) -> None:
        self._graph = model.graph
        self._opset = model.opset
        self._file = file
        self._settings = settings
        self._constants: dict[str, Constant] = {}
        self._used_constants: dict[str, np.ndarray] = {}
        self.slots: dict[str, int] = {}
        self.steps: list[_Step] = []
        self.choices: list[KernelChoice] = []
        self.weight_bytes = 0
        self.workers: Workers | None = None

    def build(self) -> None:
        """Prepare every node; UnsupportedNodesError names all that cannot be."""
        self._check_operators()
        self._collect_constants()
        if worth_numba(_multiplications(self._graph, self._file)):
            self.workers = Workers(self._settings.threads)
        self._define_inputs()
        reasons: dict[int, str] = {}
        for index, node in enumerate(self._graph.nodes):
            try:
                self._add_node(index, node)
            except UnsupportedFeatureError as error:
                reasons[index] = str(error)
                self._define_outputs(node)
        if reasons:
            raise UnsupportedNodesError(reasons)
        for value in self._graph.outputs:
            self._use(value.name, f"graph output {value.name!r}")

    def initial_values(self) -> list[np.ndarray | None]:
        """Return the value of every slot before the first step."""
        values: list[np.ndarray | None] = [None] * len(self.slots)
        for name, array in self._used_constants.items():
            values[self.slots[name]] = array
        return values

    def _check_operators(self) -> None:
        reasons = {
            index: f"the native engine lacks operator {operator_label(node)} of opset {self._opset}"
            for index, node in enumerate(self._graph.nodes)
            if node.domain or find_operator(node.op_type, self._opset) is None
        }
        if reasons:
            raise UnsupportedNodesError(reasons)

    def _collect_constants(self) -> None:
        overridable = {value.name for value in self._graph.inputs}
        for name, tensor in self._graph.initializers.items():
            if name in overridable:
                self._used_constants[name] = inline_constant(tensor).array()
            else:
                self._constants[name] = inline_constant(tensor)
        for name in self._graph.free_names:
            self._constants[name] = StoredConstant(self._file, name)

    def _define_inputs(self) -> None:
        for value in self._graph.inputs:
            self._define(value.name)

    def _define(self, name: str) -> int:
        if name in self.slots or name in self._constants:
            raise CorruptError(f"the graph defines {name!r} twice", section="GRAPH")
        self.slots[name] = len(self.slots)
        return self.slots[name]

    def _define_outputs(self, node: Node) -> tuple[int, ...]:
        return tuple(self._define(name) if name else _ABSENT for name in node.outputs)

    def _use(self, name: str, label: str) -> int:
        """Return the slot of a value that is read; decode it if it is a constant."""
        if not name:
            return _ABSENT
        if name in self.slots:
            return self.slots[name]
        constant = self._constants.get(name)
        if constant is None:
            raise CorruptError(f"{label} reads {name!r} before anything computes it", section="GRAPH")
        self._used_constants[name] = array = constant.array()
        self.weight_bytes += array.nbytes
        self.slots[name] = len(self.slots)
        return self.slots[name]

    def _add_node(self, index: int, node: Node) -> None:
        label = f"node {node_label(index, node)} ({node.op_type})"
        folded = self._fold(node, label)
        if folded is not None:
            [output] = [name for name in node.outputs if name]
            if output in self.slots or output in self._constants:
                raise CorruptError(f"the graph defines {output!r} twice", section="GRAPH")
            self._constants[output] = folded
            self._explain(index, node, "constant")
            return
        context = self._context(node, label)
        operator = find_operator(node.op_type, self._opset)
        assert operator is not None
        try:
            prepared = operator(context)
        except (ValueError, TypeError, IndexError) as error:
            if isinstance(error, FormatError):
                raise
            raise CorruptError(f"{label} makes no sense: {error}", section="GRAPH") from error
        if not isinstance(prepared, Prepared):
            prepared = Prepared(run=prepared, kernel="numpy")
        self.weight_bytes += prepared.weight_bytes
        inputs = tuple(
            _ABSENT if i in prepared.taken else self._use(name, label) for i, name in enumerate(node.inputs)
        )
        outputs = self._define_outputs(node)
        self.steps.append(_Step(run=prepared.run, label=label, inputs=inputs, outputs=outputs))
        self._explain(index, node, prepared.kernel)

    def _context(self, node: Node, label: str) -> NodeContext:
        return NodeContext(
            node,
            label=label,
            opset=self._opset,
            constants=self._constants,
            workers=self.workers,
            limits=self._settings.limits,
        )

    def _explain(self, index: int, node: Node, kernel: str) -> None:
        self.choices.append(
            KernelChoice(node=node_label(index, node), operator=operator_label(node), kernel=kernel)
        )

    def _fold(self, node: Node, label: str) -> Constant | None:
        """Return the value of a node that only passes a constant on; None for any other node."""
        if len([name for name in node.outputs if name]) != 1:
            return None
        if node.op_type == "Constant":
            return constant_value(self._context(node, label))
        operand = self._constants.get(node.inputs[0]) if len(node.inputs) == 1 else None
        if operand is None:
            return None
        if node.op_type == "Identity":
            return operand
        if node.op_type == "Transpose":
            rank = len(operand.shape)
            permutation = self._context(node, label).integers("perm") or tuple(range(rank))[::-1]
            if sorted(permutation) != list(range(rank)):
                raise CorruptError(f"{label} permutes {rank} axes by {permutation}", section="GRAPH")
            return operand.transposed(permutation)
        return None


def _multiplications(graph: Graph, file: TensorFile) -> int:
    """Estimate the multiplications of one run from the weights, a convolution using each many times."""
    kernels = {node.inputs[1] for node in graph.nodes if node.op_type == "Conv" and len(node.inputs) > 1}
    return sum(
        file.info(name).n_stored * (_USES_OF_CONV_WEIGHT if name in kernels else 1)
        for name in graph.free_names
    )
