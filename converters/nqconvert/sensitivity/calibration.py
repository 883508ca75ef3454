"""Calibration data in the forms that users have it, brought into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nqformat.errors import ConversionError

__all__ = [
    "Batch",
    "WholeBatches",
    "calibration_batches",
    "feeds_of",
    "fitting_batch_size",
    "has_targets",
    "repeatable",
    "torch_batch",
]

_BATCH_VALUES = 1 << 18
_BATCH_BOUNDS = (8, 250)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples of one forward pass.

    Attributes
    ----------
    args : tuple
        Inputs by position; axis 0 counts samples.
    kwargs : dict
        Inputs by name.
    targets : array, structure of arrays, or None
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any]
    targets: Any = None

    @property
    def n_samples(self) -> int:
        """Number of samples, from the first input."""
        first = next(iter((*self.args, *self.kwargs.values())))
        return int(first.shape[0]) if first.ndim else 1

    def samples(self, start: int, stop: int) -> Batch:
        """Return some of the samples."""
        return self.mapped(lambda value: value[start:stop] if value.ndim else value)

    def mapped(self, change: Callable[[Any], Any]) -> Batch:
        """Return the batch with every array changed."""
        return Batch(
            args=tuple(change(value) for value in self.args),
            kwargs={name: change(value) for name, value in self.kwargs.items()},
            targets=_mapped(self.targets, change),
        )


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    if value is None:
        return None
    if isinstance(value, tuple | list):
        return tuple(_mapped(item, change) for item in value)
    return change(value)


def calibration_batches(calibration: Any, *, batch_size: int, samples: int) -> Iterator[Batch]:
    """Yield batches of at most `batch_size`, `samples` in all.

    Parameters
    ----------
    calibration : array, tuple, mapping or iterable
        - an array or tensor: the model's one input;
        - a tuple ``(inputs, targets)``, inputs being an array, a sequence or a mapping of arrays;
        - a mapping of input names to arrays;
        - a list, DataLoader or other iterable of batches, each an array, ``(inputs, targets)`` or a
          mapping.

        :func:`repeatable` and :class:`nqconvert.ImageFolder` make these of functions, iterators and images;
        :class:`WholeBatches` keeps a fixed number of samples together.
    batch_size, samples : int

    Raises
    ------
    ConversionError
        If there is no sample.
    TypeError
        If the form is none of these.
    """
    if isinstance(calibration, WholeBatches):
        yield from calibration.up_to(samples)
        return
    left = samples
    for batch in _given_batches(calibration):
        for start in range(0, batch.n_samples, batch_size):
            if left <= 0:
                return
            part = batch.samples(start, min(start + batch_size, start + left, batch.n_samples))
            left -= part.n_samples
            yield part
    if left == samples:
        raise ConversionError("the calibration data holds no sample")


def repeatable(calibration: Any, samples: int) -> Any:
    """Return calibration data that can be gone through more than once.

    A function is called without arguments; what an iterator gives is kept, up to so many samples.
    """
    if callable(calibration) and not hasattr(calibration, "__iter__") and not _is_array(calibration):
        calibration = calibration()
    if not hasattr(calibration, "__next__"):
        return calibration
    kept: list[Any] = []
    left = samples
    for item in calibration:
        kept.append(item)
        left -= _batch_of(item).n_samples
        if left <= 0:
            break
    return kept


class WholeBatches:
    """Calibration data as batches that are never divided, for graphs that take so many samples and no others.

    What is left of a given batch is dropped.

    Parameters
    ----------
    calibration : object
        As in :func:`calibration_batches`.
    n_samples : int
        Of each batch.
    samples : int
        In all.

    Raises
    ------
    ConversionError
        If no batch is complete.
    """

    def __init__(self, calibration: Any, n_samples: int, samples: int) -> None:
        given = calibration_batches(calibration, batch_size=n_samples, samples=samples)
        self._batches = [batch for batch in given if batch.n_samples == n_samples]
        if not self._batches:
            raise ConversionError(
                f"the model takes {n_samples} samples at once, the calibration data has fewer"
            )

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def up_to(self, samples: int) -> list[Batch]:
        """Return the first batches, `samples` in all at most but one batch at least."""
        return self._batches[: max(1, samples // self._batches[0].n_samples)]


def has_targets(calibration: Any) -> bool:
    """Whether the first batch comes with targets."""
    return next(iter(_given_batches(calibration))).targets is not None


def _given_batches(calibration: Any) -> Iterator[Batch]:
    if calibration is None:
        raise ConversionError("this sensitivity needs calibration data")
    if _is_array(calibration) or isinstance(calibration, tuple | Mapping):
        yield _batch_of(calibration)
        return
    if not hasattr(calibration, "__iter__"):
        raise TypeError(f"calibration must be arrays or batches, not {type(calibration).__name__}")
    for item in calibration:
        yield item if isinstance(item, Batch) else _batch_of(item)


def _batch_of(item: Any) -> Batch:
    if isinstance(item, tuple | list):
        if len(item) != 2:
            raise TypeError(f"a batch must be (inputs, targets) or one input, not {len(item)} things")
        inputs, targets = item
    else:
        inputs, targets = item, None
    if isinstance(inputs, Mapping):
        return Batch(kwargs={name: _array(value) for name, value in inputs.items()}, targets=targets)
    values = inputs if isinstance(inputs, tuple | list) else (inputs,)
    return Batch(args=tuple(_array(value) for value in values), kwargs={}, targets=_mapped(targets, _array))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _array(value: Any) -> Any:
    return value if _is_array(value) else np.asarray(value)


def torch_batch(batch: Batch, module: Any) -> Batch:
    """Return the batch as torch tensors on the module's device."""
    import torch

    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    def tensor(value: Any) -> Any:
        made = value if isinstance(value, torch.Tensor) else torch.from_numpy(np.array(value))
        return made.detach().to(device)

    return batch.mapped(tensor)


def fitting_batch_size(calibration: Any) -> int:
    """Return how many samples of the inputs make a batch: 8 to 250, fewer of larger ones."""
    first = next(calibration_batches(calibration, batch_size=1, samples=1))
    n_values = sum(int(np.prod(value.shape)) for value in (*first.args, *first.kwargs.values()))
    return int(np.clip(_BATCH_VALUES // max(1, n_values), *_BATCH_BOUNDS))


def feeds_of(batch: Batch, input_names: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return a batch's inputs as arrays by graph input name.

    Raises
    ------
    ConversionError
        If the inputs are not as many as the graph's, or have other names.
    """
    if batch.kwargs:
        given = dict(batch.kwargs)
    else:
        if len(batch.args) != len(input_names):
            raise ConversionError(
                f"the calibration data has {len(batch.args)} inputs, the model takes {list(input_names)}"
            )
        given = dict(zip(input_names, batch.args, strict=True))
    if set(given) != set(input_names):
        raise ConversionError(
            f"the calibration data has inputs {sorted(given)}, the model takes {sorted(input_names)}"
        )
    return {name: value.numpy() if hasattr(value, "numpy") else value for name, value in given.items()}
