"""From settings to the bytes of a file, for one source and its sensitivities."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np

import nqformat
from nqformat.dtypes import DType
from nqformat.errors import ConversionError
from nqformat.tensor import HashedTensor, RawTensor, Tensor, ViewTensor

from .blas_threads import one_blas_thread
from .obs.surgeon import Surgeon
from .presets import ConvertSettings
from .quantization import QuantizedModel, quantize_tensors
from .repair.stage import repaired_tensors
from .search import Attempt, Target, search_rate
from .sources import ModelSource

__all__ = ["Encoding", "file_metadata"]

_FITTING_ROUNDS = 3
_CLOSE_ENOUGH = 0.99


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What stays the same while settings are tried.

    Attributes
    ----------
    source : ModelSource
        Pruned already.
    sensitivities : mapping of str to ndarray, or None
    surgeon : Surgeon or None
        For method ``obs``: Hessians of the source's layers.
    full_metadata, edge : bool
    prefer : {"size", "speed"}
        As in :func:`nqconvert.convert`.
    """

    source: ModelSource
    sensitivities: Mapping[str, np.ndarray] | None = None
    surgeon: Surgeon | None = None
    full_metadata: bool = False
    edge: bool = False
    prefer: str = "size"

    def quantize(self, settings: ConvertSettings, *, repaired: bool = True) -> QuantizedModel:
        """Return the source's tensors, quantized and, with method ``obs``, repaired."""
        with one_blas_thread():
            return self._quantized(settings, repaired=repaired)

    def _quantized(self, settings: ConvertSettings, *, repaired: bool) -> QuantizedModel:
        settled = self.source.settled
        model = quantize_tensors(
            {name: array for name, array in self.source.tensors.items() if name not in settled},
            settings,
            self.sensitivities,
            self.surgeon,
            sequential=repaired and settings.repairs.sequential,
        )
        if settled:
            model = replace(model, tensors=_Joined(model.tensors, settled))
        network = None if self.surgeon is None else self.surgeon.network
        if not repaired or network is None or settings.method != "obs":
            return model
        tensors, notes = repaired_tensors(model.tensors, network, settings.repairs)
        return replace(model, tensors=tensors, notes=(*model.notes, *notes))

    def tensors(self, model: QuantizedModel) -> Mapping[str, Tensor]:
        """Return everything that the file's tensor table holds."""
        return _Joined(model.tensors, self.source.views)

    def metadata(self, settings: ConvertSettings) -> dict[str, Any]:
        """Return what the file says of its making."""
        return file_metadata(settings, full=self.full_metadata)

    def max_bytes(self, target: Target) -> int | None:
        """Return the largest file that a target allows, or None without a bound."""
        arrays = self.source.tensors.values()
        return target.max_bytes(
            original_bytes=sum(array.nbytes for array in arrays), n_values=sum(array.size for array in arrays)
        )

    def content(self, settings: ConvertSettings, model: QuantizedModel) -> bytes:
        """Return the bytes of the file."""
        return nqformat.save(
            self.tensors(model),
            graph=self.source.graph,
            metadata=self.metadata(settings),
            edge=self.edge,
            prefer=self.prefer,
        )

    def write(self, settings: ConvertSettings, model: QuantizedModel, path: str | os.PathLike[str]) -> None:
        """Write :meth:`content` to a file."""
        nqformat.save_file(
            self.tensors(model),
            path,
            graph=self.source.graph,
            metadata=self.metadata(settings),
            edge=self.edge,
            prefer=self.prefer,
        )

    def attempt(self, settings: ConvertSettings, *, repaired: bool = True) -> Attempt:
        """Quantize and encode."""
        model = self.quantize(settings, repaired=repaired)
        return Attempt(
            settings=settings,
            model=model,
            file_bytes=len(self.content(settings, model)),
            distortion=self.distortion(model),
        )

    def fitting_attempt(
        self, settings: ConvertSettings, max_bytes: int, progress: Callable[[str], None]
    ) -> Attempt:
        """Search for the best settings whose file has at most `max_bytes`; repairs follow the search.

        Where repairs change the bytes of the file, the search goes on with a bound as much lower or higher;
        where no repaired file fits, nothing is repaired.

        Raises
        ------
        ConversionError
            As :func:`nqconvert.search.search_rate`.
        """
        unrepaired = partial(self.attempt, repaired=False)
        best = search_rate(settings, unrepaired, max_bytes, progress)
        if settings.method != "obs":
            return best
        found, bound = best, max_bytes
        kept: Attempt | None = None
        for _ in range(_FITTING_ROUNDS):
            progress("repairing what was quantized")
            repaired = self.attempt(found.settings)
            if repaired.file_bytes <= max_bytes and (kept is None or repaired.file_bytes > kept.file_bytes):
                kept = repaired
            if kept is not None and kept.file_bytes >= _CLOSE_ENOUGH * max_bytes:
                break
            bound += max_bytes - repaired.file_bytes
            try:
                found = search_rate(settings, unrepaired, bound, progress)
            except ConversionError:
                break
        return kept or best

    def distortion(self, model: QuantizedModel) -> float:
        """Return the sum of sensitivity x squared error, or the loss that layer Hessians predict.

        Tensors of unknown sensitivity have the mean of the others.
        """
        if model.loss is not None:
            return model.loss
        given = self.sensitivities or {}
        filling = float(np.mean([array.mean() for array in given.values()])) if given else 1.0
        total = 0.0
        for name, tensor in model.tensors.items():
            if isinstance(tensor, RawTensor | ViewTensor | HashedTensor) or tensor.dtype is DType.BFLOAT16:
                continue
            if name in self.source.settled:
                continue
            error = np.square(self.source.tensors[name] - tensor.decode(), dtype=np.float64)
            weighted = error * given[name] if name in given else error * filling
            total += float(weighted.sum())
        return total


class _Joined(Mapping[str, Tensor]):
    """Tensors and others that are added or take their place, without taking any out of where they are."""

    def __init__(self, tensors: Mapping[str, Tensor], views: Mapping[str, Tensor]) -> None:
        self._parts = tensors, views

    def __getitem__(self, name: str) -> Tensor:
        tensors, views = self._parts
        return views[name] if name in views else tensors[name]

    def __iter__(self) -> Iterator[str]:
        tensors, views = self._parts
        return iter(dict.fromkeys((*tensors, *views)))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def file_metadata(settings: ConvertSettings, *, full: bool) -> dict[str, Any]:
    """Return what a file says of its making; nothing in it varies between equal runs."""
    short = {"method": settings.method, "seed": settings.seed, "version": nqformat.__version__}
    return {**short, "settings": asdict(settings)} if full else short
