"""Quantized tensors of a large model, kept in a temporary file between quantization and encoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from nqformat.tensor import AffineTensor, Tensor

from .array_spool import ArraySpool, Kept

__all__ = ["TensorSpool"]

_SMALL_BYTES = 1 << 12
_IN_MEMORY_BYTES = 1 << 22


class TensorSpool(Mapping[str, Tensor]):
    """Tensors by name, in the order in which they were added.

    Numbers are read again whenever a tensor is asked for. Those of up to 4 KiB stay in memory, and so do the
    first 4 MiB of others (:class:`nqconvert.array_spool.ArraySpool`). Elements kept bit for bit are taken to
    belong to the model, and are only referred to.

    Examples
    --------
    >>> import numpy as np
    >>> from nqformat import Codebook, CodebookTensor
    >>> book = Codebook(values=np.float32([0.0, 1.0]))
    >>> spool = TensorSpool()
    >>> spool.add("w", CodebookTensor(indices=np.ones((100, 100), np.uint8), codebook=book))
    >>> spool["w"].indices.shape, spool["w"].codebook is book
    ((100, 100), True)
    """

    def __init__(self) -> None:
        self._arrays = ArraySpool(budget_bytes=_IN_MEMORY_BYTES)
        self._tensors: dict[str, Tensor | _Spooled] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor; one of the same name is replaced."""
        role = "k" if isinstance(tensor, AffineTensor) else "indices"
        numbers = getattr(tensor, role, None)
        if numbers is None or numbers.nbytes <= _SMALL_BYTES:
            self._tensors[name] = tensor
            return
        self._tensors[name] = _Spooled(
            make=type(tensor),
            others={f.name: getattr(tensor, f.name) for f in fields(tensor) if f.name != role},
            role=role,
            numbers=self._arrays.put(numbers),
        )

    def __getitem__(self, name: str) -> Tensor:
        found = self._tensors[name]
        if not isinstance(found, _Spooled):
            return found
        return found.make(**found.others, **{found.role: self._arrays.get(found.numbers)})

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spooled:
    """A tensor whose numbers, the field `role`, lie in a spool."""

    make: Callable[..., Tensor]
    others: dict[str, Any]
    role: str
    numbers: Kept
