"""From the nodes of a graph to the steps that run them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nqformat.errors import CorruptError, FormatError, UnsupportedFeatureError
from nqformat.kernels.objects import KernelLibrary
from nqruntime.constants import ArrayConstant, Constant, StoredConstant, inline_constant
from nqruntime.graph import Graph, GraphValue, Node
from nqruntime.kernels.library import compute_library
from nqruntime.lowering.measuring import Chooser
from nqruntime.lowering.reader import SegmentReader
from nqruntime.lowering.segment import FindFault, Segment
from nqruntime.operators import NodeContext, Prepared, find_operator
from nqruntime.operators.creation import constant_value
from nqruntime.team import available_processors
from nqruntime.tensor_file import TensorFile

from .engine import EngineSettings, KernelChoice, node_label, operator_label
from .folding import folded
from .program import ABSENT, Program, Step, plan_program

_USES_OF_CONV_WEIGHT = 64
_USES_OF_RECURRENT_WEIGHT = 16
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_USES_OF_RECURRENT_WEIGHT = 16
_RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_FLOAT32_NUMBER = 1
_KEEPS_FLOATS = frozenset(
    {"ConvTranspose", "Expand", "GroupNormalization", "InstanceNormalization", "LogSoftmax", "Pad", "PRelu"}
    | {"Resize", "Softplus", "Tile"}
)
"""Operators whose output has the dtype of their first input."""


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
class Branch:
    """A graph inside a node, ready to run.

    Attributes
    ----------
    captured : tuple of str
        Values of the graph around it that it reads.
    program : Program
    slots : dict of str to int
    initial : list of (ndarray or None)
        Values before the first step.
    n_nodes : int
    """

    captured: tuple[str, ...]
    program: Program
    slots: dict[str, int]
    initial: list[np.ndarray | None]
    n_nodes: int

    def run(self, outside: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Compute the outputs; constants among them are copied."""
        values = list(self.initial)
        for name in self.captured:
            values[self.slots[name]] = outside[name]
        self.program.execute(values)
        found = []
        for slot in self.program.results:
            value = values[slot]
            assert value is not None
            found.append(value.copy() if value is self.initial[slot] else value)
        return tuple(found)


class Builder:
    """Turns the nodes of a graph, or of a branch inside one, into steps; used once.

    Parameters
    ----------
    graph : Graph
    opset : int
    file : TensorFile
    settings : EngineSettings
    outer : Builder, optional
        Builder of the graph around a branch, whose constants and values the branch reads.
    choice_key : callable, optional
        Returns what choices of kernels depend on besides the node; an empty string to remember none.
    """

    def __init__(
        self,
        graph: Graph,
        opset: int,
        file: TensorFile,
        settings: EngineSettings,
        *,
        outer: Builder | None = None,
        choice_key: Callable[[], str] = str,
    ) -> None:
        self._graph = graph
        self._opset = opset
        self._outer = outer
        self._choice_key = choice_key
        self.captured: list[str] = []
        self._file = file
        self._settings = settings
        self._constants: dict[str, Constant] = {}
        self._used_constants: dict[str, np.ndarray] = {}
        self.slots: dict[str, int] = {}
        self.steps: list[Step] = []
        self.choices: dict[int, KernelChoice] = {}
        self.weight_bytes = 0
        self.library: KernelLibrary | None = None
        self.segments: list[Segment] = []
        self.matrix_library: KernelLibrary | None = None
        self._library: KernelLibrary | None = None
        self._uses: Counter[str] = Counter()
        self._floats = {value.name for value in graph.inputs if value.element_number == _FLOAT32_NUMBER}
        self._open: SegmentReader | None = None
        self.chooser: Chooser | None = None
        self.excluded: frozenset[int] = frozenset()
        self._first_index = 0
        self._replaced: Mapping[str, Constant] = {}

    def build(self) -> None:
        """Prepare every node; UnsupportedNodesError names all that cannot be."""
        self._check_operators()
        self._collect_constants()
        if self._outer is not None:
            self.matrix_library = self._outer.matrix_library
        else:
            self._library = self.matrix_library = compute_library(multiplications(self._graph, self._file))
        self._uses = count_uses(self._graph)
        self._define_inputs()
        reasons: dict[int, str] = {}
        for index, node in enumerate(self._graph.nodes, self._first_index):
            try:
                if not self._join_segment(index, node):
                    self._add_node(index, node)
            except UnsupportedFeatureError as error:
                reasons[index] = str(error)
                self._define_outputs(node)
        self._close_segment()
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
            for index, node in enumerate(self._graph.nodes, self._first_index)
            if node.domain or (node.op_type != "If" and find_operator(node.op_type, self._opset) is None)
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
        if self._outer is not None:
            self._constants = {**self._outer._constants, **self._constants, **self._replaced}
            return
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
        return tuple(self._define(name) if name else ABSENT for name in node.outputs)

    def _use(self, name: str, label: str) -> int:
        """Return the slot of a value that is read; decode it if it is a constant."""
        if not name:
            return ABSENT
        if name in self.slots:
            return self.slots[name]
        constant = self._constants.get(name)
        if constant is None and self._outer is not None and self._outer.knows(name):
            self.captured.append(name)
            return self._define(name)
        if constant is None:
            raise CorruptError(f"{label} reads {name!r} before anything computes it", section="GRAPH")
        self._used_constants[name] = array = constant.array()
        self.weight_bytes += array.nbytes
        self.slots[name] = len(self.slots)
        return self.slots[name]

    def knows(self, name: str) -> bool:
        """Whether this graph, or one around it, has computed the value before."""
        return name in self.slots or (self._outer is not None and self._outer.knows(name))

    def _add_if(self, index: int, node: Node, label: str) -> None:
        """Add a node that runs one of two branches."""
        held = self.weight_bytes
        bodies = [self._branch(node, name, label) for name in ("then_branch", "else_branch")]
        captured = tuple(dict.fromkeys(name for body in bodies for name in body.captured))
        inputs = tuple(self._use(name, label) for name in (*node.inputs[:1], *captured))

        def run(condition: np.ndarray, *values: np.ndarray) -> tuple[np.ndarray, ...]:
            body = bodies[0 if bool(condition.reshape(())) else 1]
            return body.run(dict(zip(captured, values, strict=True)))

        outputs = self._define_outputs(node)
        self.steps.append(Step(run=run, label=label, inputs=inputs, outputs=outputs, node=index))
        kernel = " or ".join(f"{body.n_nodes} nodes" for body in bodies)
        self._explain(index, node, kernel, self.weight_bytes - held)

    def _branch(self, node: Node, name: str, label: str) -> Branch:
        attribute = node.attributes.get(name)
        if attribute is None or not isinstance(attribute.value, Graph) or len(node.inputs) != 1:
            raise CorruptError(f"{label} has no {name} or no condition", section="GRAPH")
        graph = attribute.value
        if graph.inputs or graph.sparse_initializers or len(graph.outputs) != len(node.outputs):
            raise CorruptError(f"{label} has a {name} of other inputs or outputs", section="GRAPH")
        inner = Builder(graph, self._opset, self._file, self._settings, outer=self)
        inner.build()
        self.weight_bytes += inner.weight_bytes
        return inner.branch()

    def branch(self) -> Branch:
        """Return the built graph as one that runs inside another."""
        results = tuple(self.slots[value.name] for value in self._graph.outputs)
        initial = self.initial_values()
        return Branch(
            captured=tuple(self.captured),
            program=plan_program(self.steps, results, initial),
            slots=self.slots,
            initial=initial,
            n_nodes=len(self._graph.nodes),
        )

    def _add_node(self, index: int, node: Node) -> None:
        label = _step_label(index, node)
        folded = self._fold(node, label)
        if folded is not None:
            [output] = [name for name in node.outputs if name]
            if output in self.slots or output in self._constants:
                raise CorruptError(f"the graph defines {output!r} twice", section="GRAPH")
            self._constants[output] = folded
            self._explain(index, node, "constant")
            return
        self._close_segment()
        held = self.weight_bytes
        if node.op_type == "If":
            self._add_if(index, node, label)
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
            ABSENT if i in prepared.taken else self._use(name, label) for i, name in enumerate(node.inputs)
        )
        outputs = self._define_outputs(node)
        self.steps.append(Step(run=prepared.run, label=label, inputs=inputs, outputs=outputs, node=index))
        is_float = node.op_type in _KEEPS_FLOATS and node.inputs[0] in self._floats
        if is_float or (node.op_type == "Gather" and prepared.taken):
            self._floats.update(node.outputs)
        self._explain(index, node, prepared.kernel, self.weight_bytes - held)

    def _join_segment(self, index: int, node: Node) -> bool:
        """Let a node join the open segment; False if it runs on its own."""
        if self._library is None or index in self.excluded or node.op_type in ("Constant", "If"):
            return False
        if self._open is None:
            if self.chooser is None:
                low_memory = self._settings.memory == "low"
                int8 = self._settings.precision == "int8"
                self.chooser = Chooser(
                    self._library, low_memory=low_memory, key=self._choice_key(), int8=int8
                )
            self._open = SegmentReader(self.chooser, self._uses, self._floats)
        return self._open.take(index, self._context(node, _step_label(index, node)))

    def _close_segment(self) -> None:
        """Make one step of the open segment's nodes, or one of each if machine code gains nothing."""
        found, self._open, library = self._open, None, self._library
        if found is None or library is None:
            return
        nodes = found.nodes
        if not found.is_worth_it:
            self._library = None
            for index, node in nodes.items():
                self._add_node(index, node)
            self._library = library
            return
        inputs, outputs = found.outside_inputs(), found.outside_outputs()
        label = _segment_label(nodes)
        input_slots = tuple(self._use(name, label) for name in inputs)
        for node in nodes.values():
            self._define_outputs(node)
        find_fault = self._fault_finder(nodes, inputs, found)
        n_threads = self._settings.threads or available_processors()
        most_bytes = self._settings.limits.materialised_bytes
        segment = Segment(
            found.operations, inputs, outputs, library, find_fault, n_threads=n_threads, most_bytes=most_bytes
        )
        self.segments.append(segment)
        self._floats.update(outputs)
        output_slots = tuple(self.slots[name] for name in outputs)
        self.steps.append(
            Step(
                run=segment.run,
                label=label,
                inputs=input_slots,
                outputs=output_slots,
                node=min(nodes),
                node_seconds=segment.node_seconds,
            )
        )

    def _fault_finder(
        self, nodes: Mapping[int, Node], inputs: Sequence[str], found: SegmentReader
    ) -> FindFault:
        """Return what runs nodes one by one, on weights of zero, to say what is wrong with their inputs."""
        zero = np.zeros((), dtype=np.float32)
        weights = {n: ArrayConstant(np.broadcast_to(zero, shape)) for n, shape in found.weight_shapes.items()}
        graph = Graph(
            nodes=tuple(nodes.values()),
            inputs=tuple(GraphValue(name=name, element_number=0, shape=None) for name in inputs),
            outputs=tuple(
                GraphValue(name=name, element_number=0, shape=None) for name in found.outside_outputs()
            ),
            initializers={},
        )

        def find_fault(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, ...] | None:
            inner = Builder(graph, self._opset, self._file, self._settings, outer=self)
            inner._first_index = min(nodes)
            inner._replaced = weights
            inner.build()
            inner.captured = list(inputs)
            results = inner.branch().run(dict(zip(inputs, arrays, strict=True)))
            return results if all(result.size == 0 for result in results) else None

        return find_fault

    def _context(self, node: Node, label: str) -> NodeContext:
        return NodeContext(
            node,
            label=label,
            opset=self._opset,
            constants=self._constants,
            library=self.matrix_library,
            limits=self._settings.limits,
        )

    def _explain(self, index: int, node: Node, kernel: str, weight_bytes: int = 0) -> None:
        self.choices[index] = KernelChoice(
            node=node_label(index, node),
            operator=operator_label(node),
            kernel=kernel,
            weight_bytes=weight_bytes,
        )

    def _fold(self, node: Node, label: str) -> Constant | None:
        """Return the value of a node that only passes a constant on; None for any other node."""
        if len([name for name in node.outputs if name]) != 1:
            return None
        if node.op_type == "Constant":
            return constant_value(self._context(node, label))
        operand = self._constants.get(node.inputs[0]) if len(node.inputs) == 1 else None
        if operand is None or node.op_type not in ("Identity", "Transpose"):
            return folded(self._context(node, label))
        if node.op_type == "Identity":
            return operand
        if node.op_type == "Transpose":
            rank = len(operand.shape)
            permutation = self._context(node, label).integers("perm") or tuple(range(rank))[::-1]
            if sorted(permutation) != list(range(rank)):
                raise CorruptError(f"{label} permutes {rank} axes by {permutation}", section="GRAPH")
            return operand.transposed(permutation)
        return None


def _step_label(index: int, node: Node) -> str:
    return f"node {node_label(index, node)} ({node.op_type})"


def _segment_label(nodes: Mapping[int, Node]) -> str:
    (
        (first, node),
        *_,
    ) = nodes.items()
    return f"{_step_label(first, node)} and {len(nodes) - 1} after it"


def count_uses(graph: Graph) -> Counter[str]:
    """Count how often each value is read: by nodes, by graphs inside them, and as an output."""
    uses = Counter(value.name for value in graph.outputs)
    for node in graph.nodes:
        uses.update(node.inputs)
        for body in node.subgraphs:
            uses.update(body.free_names)
    return uses


def multiplications(graph: Graph, file: TensorFile) -> int:
    """Estimate the multiplications of one run from the weights, which some layers use many times."""
    kernels = {node.inputs[1] for node in graph.nodes if node.op_type == "Conv" and len(node.inputs) > 1}
    recurrent = any(node.op_type in _RECURRENT for node in graph.nodes)
    others = _USES_OF_RECURRENT_WEIGHT if recurrent else 1
    return sum(
        file.info(name).n_stored * (_USES_OF_CONV_WEIGHT if name in kernels else others)
        for name in graph.free_names
    )
