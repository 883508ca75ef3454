"""Engine that computes from the compressed weights, with NumPy and Numba and nothing else."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from nqformat.errors import FormatError, UnsupportedFeatureError
from nqruntime.element_types import element_type
from nqruntime.graph import Graph, GraphValue, Model
from nqruntime.lowering.segment import DeclinedError, Segment
from nqruntime.made_up import made_up_feeds
from nqruntime.operators import MAX_OPSET
from nqruntime.tensor_file import TensorFile

from .borders import Borders
from .builder import Builder
from .engine import EngineSettings, KernelChoice, node_label, operator_label
from .program import Program, plan_program

if TYPE_CHECKING:
    from nqruntime.precision import Int8Layer

_MOST_REBUILDS = 16
_FLOAT32 = 1

Reopen = Callable[[], AbstractContextManager[TensorFile]]


class NativeEngine:
    """A graph run on compressed weights.

    Machine code that turns out not to take the shapes of some values gives way to NumPy: the network is built
    again without it, which needs the file once more.

    Parameters
    ----------
    model : Model
    file : TensorFile
    settings : EngineSettings
    reopen : callable, optional
        Opens the same file again.
    choice_key : callable, optional
        Returns what choices of kernels depend on besides the node; an empty string to remember none.
    """

    name = "native"

    def __init__(
        self,
        model: Model,
        file: TensorFile,
        settings: EngineSettings,
        *,
        reopen: Reopen | None = None,
        choice_key: Callable[[], str] = str,
    ) -> None:
        _check_model(model)
        self._model = model
        self._borders = Borders.of(model.graph, file)
        self._is_plain = self._borders.are_plain
        self._settings = settings
        self._reopen = reopen
        self._choice_key = choice_key
        self._lock = threading.Lock()
        self._network = self._chosen(file, self._built(file, frozenset()))

    def _built(self, file: TensorFile, excluded: frozenset[int]) -> Network:
        graph, opset = self._model.graph, self._model.opset
        builder = Builder(graph, opset, file, self._settings, choice_key=self._choice_key)
        return Network(graph, builder, excluded)

    def _chosen(self, file: TensorFile, network: Network) -> Network:
        """Run once on made-up inputs, so that segments choose their kernels; else a later run does."""
        graph = self._model.graph
        feeds = made_up_feeds(graph.inputs, graph.initializers) if network.has_segments else None
        names = [value.name for value in graph.outputs]
        for _ in range(_MOST_REBUILDS if feeds is not None else 0):
            try:
                network.run(names, self._borders.widened(feeds or {}))
                network.remember_choices()
                break
            except DeclinedError as declined:
                network = self._built(file, network.excluded | declined.nodes)
            except FormatError:
                break
        return network

    def run(self, output_names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the named outputs."""
        if not self._is_plain:
            return self._borders.run(self._run, output_names, feeds)
        network = self._network
        try:
            return network.run(output_names, feeds)
        except DeclinedError as declined:
            self._exclude(network, declined)
        return self._run(output_names, feeds)

    def _run(self, output_names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        for _ in range(_MOST_REBUILDS):
            network = self._network
            try:
                return network.run(output_names, feeds)
            except DeclinedError as declined:
                self._exclude(network, declined)
        raise FormatError("the graph cannot run on such inputs", section="GRAPH")

    def _exclude(self, network: Network, declined: DeclinedError) -> None:
        """Build the network again, with NumPy for the nodes whose values have other shapes than thought."""
        with self._lock:
            if self._network is not network:
                return
            if self._reopen is None:
                raise FormatError(str(declined), section="GRAPH")
            with self._reopen() as file:
                excluded = network.excluded | declined.nodes
                self._network = self._built(file, excluded)

    @property
    def weight_bytes(self) -> int:
        """Bytes held for weights; those of machine code are known after the first run."""
        return self._network.weight_bytes

    def explain(self, feeds: Mapping[str, np.ndarray] | None = None) -> list[KernelChoice]:
        """Say for each node which kernel runs it; with inputs, also how long it takes on them."""
        if feeds is not None:
            feeds = self._borders.widened(feeds)
            self._run([value.name for value in self._model.graph.outputs], feeds)
        return self._network.explain(feeds)

    def int8_layers(self) -> list[Int8Layer]:
        """Return the layers that round their inputs to bytes, as far as shapes have come."""
        return self._network.int8_layers()

    def with_outputs(self, names: Sequence[str], file: TensorFile, precision: str) -> NativeEngine:
        """Return the same network with more values as outputs, and in another precision."""
        graph = self._model.graph
        known = {value.name for value in graph.outputs}
        further = tuple(
            GraphValue(name=name, element_number=_FLOAT32, shape=None) for name in names if name not in known
        )
        model = replace(self._model, graph=replace(graph, outputs=(*graph.outputs, *further)))
        settings = replace(self._settings, precision=precision)
        return NativeEngine(model, file, settings, reopen=self._reopen, choice_key=self._choice_key)

    def close(self) -> None:
        """Drop the weights."""
        self._network.close()


class Network:
    """A graph whose nodes have become steps.

    Parameters
    ----------
    graph : Graph
    builder : Builder
        Of the graph, not used before.
    excluded : frozenset of int
        Places in the graph of nodes that machine code does not run.
    """

    def __init__(self, graph: Graph, builder: Builder, excluded: frozenset[int]) -> None:
        builder.excluded = excluded
        builder.build()
        self.excluded = excluded
        self._graph = graph
        self._chooser = builder.chooser
        self._held_bytes = builder.weight_bytes
        self._segments = builder.segments
        self._choices = builder.choices
        self._steps = builder.steps
        self._slots = builder.slots
        self._initial = builder.initial_values()
        self._input_slots = {value.name: builder.slots[value.name] for value in graph.inputs}
        self._programs: dict[tuple[str, ...], Program] = {}
        self._whole = self._whole_segment([value.name for value in graph.outputs])

    def remember_choices(self) -> None:
        """Keep the choices of kernels for later sessions."""
        if self._chooser is not None:
            self._chooser.remember()

    @property
    def has_segments(self) -> bool:
        """Whether machine code runs any node."""
        return bool(self._segments)

    def _whole_segment(self, output_names: Sequence[str]) -> Segment | None:
        """Return the segment that is the whole graph; None if there is more than that."""
        if len(self._steps) != 1 or len(self._segments) != 1:
            return None
        [segment] = self._segments
        same = list(segment.outputs) == list(output_names)
        return segment if same and set(segment.inputs) == set(self._input_slots) else None

    def run(self, output_names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the named outputs."""
        whole = self._whole
        if whole is not None and output_names == whole.outputs and len(feeds) == len(whole.inputs):
            return list(whole.run(*[feeds[name] for name in whole.inputs]))
        program = self._program(tuple(output_names))
        values = self._values(feeds)
        lent = {id(value) for value in values if value is not None}
        with np.errstate(all="ignore"):
            program.execute(values)
        results: list[np.ndarray] = []
        for slot in program.results:
            value = values[slot]
            assert value is not None
            owned = value.base is None and id(value) not in lent
            results.append(value if owned else value.copy())
            lent.add(id(value))
        return results

    def _values(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray | None]:
        """Return the values of all slots before the first step."""
        values = list(self._initial)
        for name, array in feeds.items():
            values[self._input_slots[name]] = array
        return values

    def _program(self, output_names: tuple[str, ...]) -> Program:
        program = self._programs.get(output_names)
        if program is None:
            results = tuple(self._slots[name] for name in output_names)
            program = self._programs[output_names] = plan_program(self._steps, results, self._initial)
        return program

    @property
    def weight_bytes(self) -> int:
        """Bytes held for weights."""
        return self._held_bytes + sum(segment.weight_bytes for segment in self._segments)

    def explain(self, feeds: Mapping[str, np.ndarray] | None = None) -> list[KernelChoice]:
        """Say for each node which kernel runs it; with inputs, also how long it takes on them."""
        found = dict(self._choices)
        for segment in self._segments:
            held: Counter[int] = Counter()
            for operation in segment.operations:
                held[operation.nodes[0]] += operation.weight_bytes
            for index, kernel in segment.kernels().items():
                node = self._graph.nodes[index]
                found[index] = KernelChoice(
                    node=node_label(index, node),
                    operator=operator_label(node),
                    kernel=kernel,
                    weight_bytes=held[index],
                )
        seconds = {} if feeds is None else self._node_seconds(feeds)
        return [replace(found[index], seconds=seconds.get(index)) for index in sorted(found)]

    def int8_layers(self) -> list[Int8Layer]:
        """Return the layers that round their inputs to bytes."""
        from nqruntime.precision import Int8Layer

        found = []
        for operation in (o for segment in self._segments for o in segment.int8_operations()):
            index = operation.nodes[0]
            node = self._graph.nodes[index]
            found.append(
                Int8Layer(
                    node=node_label(index, node),
                    operator=operator_label(node),
                    kernel=operation.label,
                    value=operation.output,
                )
            )
        return found

    def _node_seconds(self, feeds: Mapping[str, np.ndarray]) -> dict[int, float]:
        program = self._program(tuple(value.name for value in self._graph.outputs))
        with np.errstate(all="ignore"):
            return program.node_seconds(self._values(feeds))

    def close(self) -> None:
        """Drop the weights."""
        self._steps = []
        self._segments = []
        self._whole = None
        self._initial = []
        self._programs = {}


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
    if element is None or element.dtype is None:
        label = element.label if element else f"ONNX data type {value.element_number}"
        raise UnsupportedFeatureError(f"the native engine does not take input {value.name!r} of {label}")
