"""HashedNets: the elements of a matrix share a few trained values by a hash of their position."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import nqformat
from nqconvert.quantizers.lossless import lossless_tensor
from nqconvert.sources import ModelSource, load_source
from nqconvert.training.loop import TrainingLoop
from nqconvert.training.records import Progress, TrainingLog
from nqconvert.training.stages import LoopSettings, Stage
from nqconvert.training.technique import Run, Technique
from nqconvert.training.training_data import Loss, TrainingData
from nqconvert.training.weight_names import checked_names
from nqformat.errors import ConversionError
from nqformat.hashing import hashed_elements
from nqformat.tensor import HashedTensor, Tensor

__all__ = ["HashedResult", "HashedWeights", "save_hashed", "train_hashed"]

_PRECISIONS = {"float16": torch.float16, "float32": torch.float32}


class HashedWeights(Technique):
    """Weights looked up in vectors that are trained in their place.

    Element p of a weight is ``sign(p) values[bucket(p)]``; the gradient of a value is the signed sum over the
    elements that share it.

    Parameters
    ----------
    module : torch.nn.Module
    buckets : mapping of parameter name to int
        Values that the elements of each share.
    seed : int
        32 bits; each weight hashes with a seed of its own from it.
    precision : {"float16", "float32"}
        Of the values that the network computes with and a file stores; those that are trained are float32.

    Source : Chen, Wilson, Tyree, Weinberger, Chen 2015, "Compressing neural networks with the hashing trick",
        eq. (3), (7), (12); the hash is that of spec 7.7
    """

    def __init__(
        self,
        module: torch.nn.Module,
        buckets: Mapping[str, int],
        *,
        seed: int = 0,
        precision: str = "float16",
    ) -> None:
        if precision not in _PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(_PRECISIONS)}, not {precision!r}")
        self._precision = _PRECISIONS[precision]
        parameters = dict(module.named_parameters(remove_duplicate=False))
        self.seeds = {name: (seed + number) % (1 << 32) for number, name in enumerate(buckets)}
        self._places: dict[str, torch.Tensor] = {}
        self._signs: dict[str, torch.Tensor] = {}
        self._values: dict[str, torch.Tensor] = {}
        for name, n_buckets in buckets.items():
            if name not in parameters:
                raise ValueError(f"buckets names {name!r}, which is no parameter of the module")
            weight = parameters[name].detach()
            if not 1 <= n_buckets <= weight.numel():
                raise ValueError(f"buckets of {name!r} must be 1 to {weight.numel()}, not {n_buckets}")
            places, signs = _hashed(tuple(weight.shape), n_buckets, self.seeds[name])
            self._places[name], self._signs[name] = places, signs
            first = torch.zeros(n_buckets)
            first[places.reshape(-1)] = (weight * signs).reshape(-1).float()
            self._values[name] = first.requires_grad_()

    @property
    def values(self) -> dict[str, np.ndarray]:
        """The shared values by parameter name, float32 numbers of the wanted precision."""
        return {name: self._rounded(value).numpy().copy() for name, value in self._values.items()}

    def _rounded(self, value: torch.Tensor) -> torch.Tensor:
        return value.detach().to(self._precision).float()

    def groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the shared values."""
        return [{"params": list(self._values.values()), "lr": lr}]

    def effective(self, values: dict[str, torch.Tensor]) -> None:
        """Look the weights up."""
        for name, shared in self._values.items():
            values[name] = self._rounded(shared)[self._places[name]] * self._signs[name]

    def after_backward(self, run: Run) -> None:
        """Move the gradients of the elements to the shared values."""
        for name, shared in self._values.items():
            gradient = run.parameters[name].grad
            if gradient is None:
                continue
            signed = (gradient * self._signs[name]).reshape(-1).double()
            summed = torch.bincount(self._places[name].reshape(-1), weights=signed, minlength=shared.numel())
            shared.grad = summed.to(shared.dtype)
            run.parameters[name].grad = None

    def state(self) -> dict[str, Any]:
        """Return the shared values."""
        return {"values": {name: value.detach() for name, value in self._values.items()}}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the shared values."""
        for name, value in state["values"].items():
            self._values[name].data.copy_(value)

    def describe(self) -> str:
        """Return names, sizes and seeds."""
        sizes = {name: value.numel() for name, value in self._values.items()}
        return repr(("hashed", sizes, self.seeds, self._precision))


def _hashed(shape: tuple[int, ...], n_buckets: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the bucket (int64) and the sign of each position."""
    signed = hashed_elements(
        np.arange(1, n_buckets + 1, dtype=np.float64), seed, 0, math.prod(shape), signs=True
    )
    places = torch.from_numpy(np.abs(signed).astype(np.int64) - 1).reshape(shape)
    return places, torch.from_numpy(np.sign(signed).astype(np.float32)).reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class HashedResult:
    """Outcome of :func:`train_hashed`.

    Attributes
    ----------
    values : dict of parameter name to ndarray of float32
    seeds : dict of parameter name to int
    shapes : dict of parameter name to tuple of int
    log : TrainingLog
    """

    values: dict[str, np.ndarray]
    seeds: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    log: TrainingLog

    @property
    def share(self) -> float:
        """Values over elements of all hashed weights."""
        n_elements = sum(math.prod(shape) for shape in self.shapes.values())
        return sum(values.size for values in self.values.values()) / n_elements

    def settled(self, source: ModelSource) -> ModelSource:
        """Return a source that stores its hashed weights as shared values and seeds.

        Parameters
        ----------
        source : ModelSource
            Of the module as :func:`train_hashed` left it.

        Raises
        ------
        ConversionError
            If the exported graph holds a hashed weight in another form than the module, such as with a batch
            norm folded in.
        """
        made: dict[str, Tensor] = {}
        left = {
            name: hashed_elements(values, self.seeds[name], 0, math.prod(self.shapes[name]), signs=True)
            for name, values in self.values.items()
        }
        for stored, array in source.tensors.items():
            flat = array.reshape(-1)
            name = next((n for n in left if np.array_equal(left[n], flat)), None)
            if name is None or self.shapes[name] != array.shape:
                continue
            del left[name]
            shared, seed = f"{stored}.values", self.seeds[name]
            made[shared] = lossless_tensor(self.values[name])
            made[stored] = HashedTensor(source=shared, shape=array.shape, seed=seed)
        if left:
            raise ConversionError(
                f"these hashed weights were not found in the exported graph as they are: {', '.join(left)}"
            )
        return replace(source, settled={**source.settled, **made})


def train_hashed(
    module: torch.nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    *,
    share: float = 0.125,
    buckets: Mapping[str, int] | None = None,
    epochs: int = 40,
    lr: float = 1e-3,
    precision: str = "float16",
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    seed: int = 0,
    validation: Iterable[Any] | None = None,
    patience: int | None = None,
    progress: Progress | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    resume: bool = True,
) -> HashedResult:
    """Train a `module` in place with hashed weights; a freshly made one is a good start.

    Parameters
    ----------
    module, loader, loss, lr, optimizer, weight_decay, seed, validation, patience, progress, checkpoint,
    resume
        As in :func:`nqconvert.training.retrain`.
    share : float, above 0 and at most 1
        Values over elements of each linear and convolution weight, if `buckets` is not given.
    buckets : mapping of parameter name to int, optional
        Values of single weights; the others stay as they are.
    epochs : int
    precision : {"float16", "float32"}
        Of the shared values; the paper counts float32.

    Returns
    -------
    HashedResult

    Raises
    ------
    As :func:`nqconvert.training.retrain`.

    Source : Chen, Wilson, Tyree, Weinberger, Chen 2015, "Compressing neural networks with the hashing trick"
    """
    if not 0.0 < share <= 1.0:
        raise ValueError(f"share must be above 0 and at most 1, not {share}")
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    chosen = buckets or {name: max(1, round(share * sizes[name])) for name in checked_names(module, None)}
    technique = HashedWeights(module, chosen, seed=seed, precision=precision)
    loop = TrainingLoop(
        module,
        TrainingData(loader=loader, loss=loss, validation=validation),
        stages=[Stage(n_epochs=epochs, lr=lr, schedule="cosine", choose_best=validation is not None)],
        settings=LoopSettings(optimizer=optimizer, weight_decay=weight_decay, seed=seed),
        techniques=[technique],
        patience=patience,
        progress=progress,
        checkpoint=checkpoint,
        resume=resume,
    )
    log = loop.run()
    shapes = {name: tuple(module.get_parameter(name).shape) for name in chosen}
    return HashedResult(values=technique.values, seeds=technique.seeds, shapes=shapes, log=log)


def save_hashed(
    module: torch.nn.Module, result: HashedResult, path: str | os.PathLike[str], *, example_inputs: Any
) -> int:
    """Write a network whose weights are hashed; the file holds shared values, seeds and the rest as it is.

    Preset ``hashed`` of :func:`nqconvert.convert` trains and writes in one go, and checks the file.

    Parameters
    ----------
    module : torch.nn.Module
        As :func:`train_hashed` left it.
    result : HashedResult
    path : path-like
    example_inputs : array, tensor or sequence

    Returns
    -------
    int
        Bytes of the file.

    Raises
    ------
    ConversionError
        As :meth:`HashedResult.settled`.
    """
    source = result.settled(load_source(module, example_inputs=example_inputs))
    kept = {n: lossless_tensor(array) for n, array in source.tensors.items() if n not in source.settled}
    metadata = {"method": "hashed", "version": nqformat.__version__}
    nqformat.save_file(
        {**kept, **source.settled, **source.views}, path, graph=source.graph, metadata=metadata
    )
    return Path(path).stat().st_size
