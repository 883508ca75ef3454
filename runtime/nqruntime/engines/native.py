"""Engine that computes from the compressed weights, with NumPy and Numba and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nqformat.dtypes import DType
from nqformat.errors import UnsupportedFeatureError
from nqruntime.element_types import element_type
from nqruntime.graph import GraphValue, Model
from nqruntime.operators import MAX_OPSET
from nqruntime.tensor_file import TensorFile

from .builder import Builder
from .engine import EngineSettings, KernelChoice
from .program import Program, plan_program

_REDUCED_PRECISION = (DType.FLOAT16, DType.BFLOAT16)


class NativeEngine:
    """A graph run on compressed weights."""

    name = "native"

    def __init__(self, model: Model, file: TensorFile, settings: EngineSettings) -> None:
        _check_model(model)
        builder = Builder(model.graph, model.opset, file, settings)
        builder.build()
        self.weight_bytes = builder.weight_bytes
        self._choices = builder.choices
        self._workers = builder.workers
        self._steps = builder.steps
        self._slots = builder.slots
        self._initial = builder.initial_values()
        self._input_slots = {value.name: builder.slots[value.name] for value in model.graph.inputs}
        self._programs: dict[tuple[str, ...], Program] = {}

    def run(self, output_names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the named outputs."""
        program = self._program(tuple(output_names))
        values = list(self._initial)
        for name, array in feeds.items():
            values[self._input_slots[name]] = array
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

    def _program(self, output_names: tuple[str, ...]) -> Program:
        program = self._programs.get(output_names)
        if program is None:
            results = tuple(self._slots[name] for name in output_names)
            program = self._programs[output_names] = plan_program(self._steps, results, self._initial)
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
