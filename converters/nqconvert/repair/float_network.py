"""The network before quantization and the inputs that a repaired one is compared on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from nqconvert.graphs.torch_graph import TorchGraph, torch_tensor
from nqconvert.graphs.views import graph_arrays
from nqconvert.sensitivity.calibration import calibration_batches, feeds_of, fitting_batch_size
from nqconvert.sources.model_source import ModelSource
from nqformat.dtypes import bfloat16_to_float32
from nqformat.optional_packages import require_package
from nqformat.tensor import HashedTensor, Tensor, ViewTensor

__all__ = ["FloatNetwork", "decoded_float", "one_thread"]

_MAX_VALUES = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatNetwork:
    """What repairs need to know.

    Attributes
    ----------
    source : ModelSource
        With a graph; pruned already.
    calibration : object
        See :func:`nqconvert.sensitivity.calibration.calibration_batches`.
    samples : int
        Most calibration samples to use.
    seed : int
    progress : callable
        Called with a line of text.
    """

    source: ModelSource
    calibration: Any
    samples: int
    seed: int
    progress: Callable[[str], None]

    def feeds(self, graph: TorchGraph, *, most: int, n_batches: int = 1) -> list[dict[str, Any]]:
        """Return inputs as torch tensors by name, in batches.

        Parameters
        ----------
        graph : TorchGraph
            Of the network; the values in it limit the samples of a batch.
        most : int
            Samples of a batch; fewer if there would be fewer than `n_batches`.
        n_batches : int
        """
        n_samples = sum(batch.n_samples for batch in self._batches(most))
        first = feeds_of(next(iter(self._batches(1))), self.source.input_names)
        tensors = graph_arrays(self.source.tensors, self.source.views)
        fitting = graph.fitting_samples(first, tensors, _MAX_VALUES)
        size = max(1, min(most, fitting, n_samples // n_batches))
        return [
            {name: torch_tensor(value) for name, value in feeds_of(batch, self.source.input_names).items()}
            for batch in self._batches(size)
        ]

    def arrays(self, *, most: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield inputs as arrays by name, in batches of at most `most` that suit their size."""
        for batch in self._batches(min(most, fitting_batch_size(self.calibration))):
            yield feeds_of(batch, self.source.input_names)

    def _batches(self, batch_size: int) -> Iterator[Any]:
        return calibration_batches(self.calibration, batch_size=batch_size, samples=self.samples)

    def graph_tensors(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the graph reads: torch tensors by stored name, and views of them."""
        return {**values, **{name: _viewed(view, values) for name, view in self.source.views.items()}}

    def float_tensors(self) -> dict[str, Any]:
        """Return the tensors before quantization as the graph reads them."""
        return self.graph_tensors({name: torch_tensor(a) for name, a in self.source.tensors.items()})


def _viewed(view: ViewTensor, values: Mapping[str, Any]) -> Any:
    torch = require_package("torch")
    rows = [values[source.name][source.start : source.stop] for source in view.sources]
    joined = rows[0] if len(rows) == 1 else torch.cat(rows)
    return joined.permute(view.permutation).reshape(view.shape)


def decoded_float(tensor: Tensor) -> np.ndarray:
    """Return a tensor's elements, bfloat16 ones as float32."""
    assert not isinstance(tensor, ViewTensor | HashedTensor)
    elements = np.asarray(tensor.decode())
    return bfloat16_to_float32(elements) if tensor.dtype.label == "bfloat16" else elements


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch add up in one order, whatever number of threads is set."""
    torch = require_package("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
