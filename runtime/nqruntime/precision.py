"""What a network loses when layers compute with 8-bit integers, measured against the same one in float32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np


class Runnable(Protocol):
    """An engine."""

    def run(self, output_names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Compute the named outputs."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Layer:
    """A layer that rounds its inputs to bytes.

    Attributes
    ----------
    node, operator, kernel : str
        As of `KernelChoice`.
    value : str
        What it computes.
    """

    node: str
    operator: str
    kernel: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """Difference of a layer's result, all int8 layers before it included.

    Attributes
    ----------
    node, operator, kernel : str
    relative_error : float
        Root of the sum of squared differences over that of the squared float32 results.
    """

    node: str
    operator: str
    kernel: str
    relative_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputError:
    """Difference of an output of the network.

    Attributes
    ----------
    name : str
    relative_error : float
        As of a layer.
    largest_difference : float
    largest_relative : float
        The same over the largest magnitude of the float32 output.
    equal_argmax : float or None
        Share of vectors along the last axis whose largest element is the same one; None for outputs without
        such vectors.
    n_vectors : int
        Their number.
    """

    name: str
    relative_error: float
    largest_difference: float
    largest_relative: float
    equal_argmax: float | None
    n_vectors: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionReport:
    """The loss of a session of ``precision="int8"``.

    Attributes
    ----------
    layers : tuple of LayerError
        Of layers that compute with bytes; all others are the same.
    outputs : tuple of OutputError
    made_up : bool
        Whether inputs were noise, which no trained network has seen.
    """

    layers: tuple[LayerError, ...]
    outputs: tuple[OutputError, ...]
    made_up: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return asdict(self)

    def __str__(self) -> str:
        given = "made-up inputs (noise)" if self.made_up else "the inputs"
        if not self.layers:
            return "int8: it makes no layer faster, or there are no kernels; all compute in float32"
        lines = [f"int8 against float32 on {given}: {len(self.layers)} layers in int8"]
        lines += [
            f"  {layer.node} {layer.operator}, {layer.kernel}: error {layer.relative_error:.2%}"
            for layer in self.layers
        ]
        for output in self.outputs:
            line = (
                f"output {output.name}: error {output.relative_error:.2%}, largest difference "
                f"{output.largest_difference:.4g} ({output.largest_relative:.2%} of the largest value)"
            )
            if output.equal_argmax is not None:
                line += f"; same largest element in {output.equal_argmax:.1%} of {output.n_vectors}"
            lines.append(line)
        return "\n".join(lines)


class _Difference:
    """Collects the difference of one value over several inputs."""

    def __init__(self) -> None:
        self.wrong = self.right = self.largest = self.most = 0.0
        self.n_vectors = self.n_equal = 0

    def add(self, exact: np.ndarray, rounded: np.ndarray) -> None:
        """Take the results of both engines."""
        if exact.dtype.kind not in "fiu" or exact.size == 0:
            return
        reference = exact.astype(np.float64)
        difference = rounded.astype(np.float64) - reference
        self.wrong += float(np.square(difference).sum())
        self.right += float(np.square(reference).sum())
        self.largest = max(self.largest, float(np.abs(difference).max()))
        self.most = max(self.most, float(np.abs(reference).max()))
        if exact.ndim >= 2 and exact.shape[-1] >= 2:
            same = exact.argmax(axis=-1) == rounded.argmax(axis=-1)
            self.n_vectors += same.size
            self.n_equal += int(same.sum())

    @property
    def relative(self) -> float:
        """Root of the ratio of the sums of squares."""
        return math.sqrt(self.wrong / (self.right or 1.0))

    @property
    def equal_argmax(self) -> float | None:
        """Share of vectors with the same largest element."""
        return self.n_equal / self.n_vectors if self.n_vectors else None


def measure_precision(
    exact: Runnable,
    rounded: Runnable,
    layers: Sequence[Int8Layer],
    outputs: Sequence[str],
    samples: Sequence[Mapping[str, np.ndarray]],
    *,
    made_up: bool,
) -> PrecisionReport:
    """Run both engines, which also give the layers' values as outputs, and compare what they give.

    Parameters
    ----------
    exact, rounded : Runnable
        In float32, and with int8 layers.
    layers : sequence of Int8Layer
    outputs : sequence of str
        Of the network.
    samples : sequence of mapping
        Checked inputs of some runs.
    made_up : bool
    """
    names = list(dict.fromkeys([*outputs, *(layer.value for layer in layers)]))
    found = {name: _Difference() for name in names}
    for feeds in samples:
        both = exact.run(names, feeds), rounded.run(names, feeds)
        for name, reference, other in zip(names, *both, strict=True):
            found[name].add(reference, other)
    return PrecisionReport(
        layers=tuple(
            LayerError(
                node=layer.node,
                operator=layer.operator,
                kernel=layer.kernel,
                relative_error=found[layer.value].relative,
            )
            for layer in layers
        ),
        outputs=tuple(_output_error(name, found[name]) for name in outputs),
        made_up=made_up,
    )


def _output_error(name: str, difference: _Difference) -> OutputError:
    return OutputError(
        name=name,
        relative_error=difference.relative,
        largest_difference=difference.largest,
        largest_relative=difference.largest / difference.most if difference.most else difference.largest,
        equal_argmax=difference.equal_argmax,
        n_vectors=difference.n_vectors,
    )
