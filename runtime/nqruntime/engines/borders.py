"""Half precision at the borders of a graph: numbers come and go as 16 bits, and are float32 inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nqformat.dtypes import DType, bfloat16_array, float32_to_bfloat16
from nqformat.errors import MissingDependencyError, UnsupportedFeatureError
from nqruntime.element_types import HALVES, element_type, widened
from nqruntime.graph import Graph, GraphValue
from nqruntime.tensor_file import TensorFile

Run = Callable[[Sequence[str], Mapping[str, np.ndarray]], list[np.ndarray]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Borders:
    """Inputs and outputs of half precision.

    Attributes
    ----------
    inputs, outputs : dict of str to DType
        Those of float16 or bfloat16.
    """

    inputs: dict[str, DType]
    outputs: dict[str, DType]

    @classmethod
    def of(cls, graph: Graph, file: TensorFile) -> Borders:
        """Return the borders of a graph.

        Raises
        ------
        UnsupportedFeatureError
            If the graph has numbers of half precision and does not declare the type of an output, or one is
            bfloat16 and ml_dtypes is not installed.
        """
        inputs, outputs = _halves(graph.inputs), _halves(graph.outputs)
        undeclared = [value.name for value in graph.outputs if not value.element_number]
        if undeclared and (inputs or outputs or _has_halves(graph, file)):
            raise UnsupportedFeatureError(
                "the native engine must know the type of each output of a graph with half-precision numbers, "
                f"and {undeclared[0]!r} has none declared"
            )
        if DType.BFLOAT16 in outputs.values():
            try:
                bfloat16_array(np.zeros(1, dtype=np.uint16), "ml_dtypes")
            except MissingDependencyError as error:
                raise UnsupportedFeatureError(str(error)) from error
        return cls(inputs=inputs, outputs=outputs)

    @property
    def are_plain(self) -> bool:
        """Whether no value needs a cast."""
        return not self.inputs and not self.outputs

    def widened(self, feeds: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return inputs as the inside of the graph takes them."""
        if not self.inputs:
            return feeds
        return {
            name: widened(array, self.inputs[name]) if name in self.inputs else array
            for name, array in feeds.items()
        }

    def run(self, run: Run, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Run the inside of the graph and return the outputs in their types, rounded once."""
        found = run(names, self.widened(feeds))
        return [
            _narrowed(array, self.outputs[name]) if name in self.outputs else array
            for name, array in zip(names, found, strict=True)
        ]


def _narrowed(array: np.ndarray, dtype: DType) -> np.ndarray:
    if dtype is DType.BFLOAT16:
        return bfloat16_array(float32_to_bfloat16(array), "ml_dtypes")
    with np.errstate(over="ignore"):
        return array.astype(np.float16)


def _halves(values: Sequence[GraphValue]) -> dict[str, DType]:
    elements = ((value.name, element_type(value.element_number)) for value in values)
    return {
        name: element.dtype
        for name, element in elements
        if element is not None and element.dtype is not None and element.dtype in HALVES
    }


def _has_halves(graph: Graph, file: TensorFile) -> bool:
    """Whether a constant or a cast is of half precision."""
    numbers = [tensor.element_number for tensor in graph.initializers.values()]
    for node in graph.nodes:
        to = node.attributes.get("to")
        numbers += [to.value] if to is not None and isinstance(to.value, int) else []
    dtypes = [element.dtype for number in numbers if (element := element_type(number)) is not None]
    dtypes += [file.info(name).dtype for name in graph.free_names]
    return any(dtype in HALVES for dtype in dtypes)
