"""Inputs to try a graph with."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence

import numpy as np

from nqformat.dtypes import DType, bfloat16_array, float32_to_bfloat16
from nqformat.errors import MissingDependencyError

from .element_types import element_type
from .graph import GraphValue

MOST_ELEMENTS = 1 << 25
OPEN_SIZE = 16


class Noise:
    """Numbers that look random, without NumPy's generators, which take long to import.

    They are those of a counter mixed by the multiplications and shifts of Steele, Lea and Flood's SplitMix
    (2014).
    """

    def __init__(self, seed: int) -> None:
        self._next = seed << 40

    def _words(self, n: int) -> np.ndarray:
        numbers = np.arange(self._next + 1, self._next + n + 1, dtype=np.uint64) * np.uint64(
            0x9E3779B97F4A7C15
        )
        self._next += n
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            numbers = (numbers ^ (numbers >> np.uint64(shift))) * np.uint64(factor)
        found: np.ndarray = numbers ^ (numbers >> np.uint64(31))
        return found

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return numbers of a normal distribution (Box and Muller 1958), float64."""
        n = math.prod(shape)
        size, angle = ((self._words(n) >> np.uint64(11)) * 2.0**-53 for _ in range(2))
        found: np.ndarray = np.sqrt(-2 * np.log1p(-size)) * np.cos(2 * np.pi * angle)
        return found.reshape(shape)

    def coins(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return integers 0 and 1."""
        return (self._words(math.prod(shape)) >> np.uint64(63)).reshape(shape)


def made_up_feeds(
    inputs: Sequence[GraphValue],
    given: Container[str],
    *,
    batch: int = 1,
    open_size: int = OPEN_SIZE,
    seed: int = 0,
) -> dict[str, np.ndarray] | None:
    """Return arrays to try a graph with: noise, for integers 0 and 1, the same each time.

    None if an input is no tensor of known rank and element type, or has more than `MOST_ELEMENTS`, or is of
    bfloat16 where ml_dtypes is not installed.

    Parameters
    ----------
    inputs : sequence of GraphValue
    given : container of str
        Names that need no array, since they have an initializer.
    batch : int
        Size of first axes that are open, and of open axes with the symbol of one.
    open_size : int
        Size of other open axes.
    seed : int
        Other arrays for another number.
    """
    noise = Noise(seed)
    wanted = [value for value in inputs if value.name not in given]
    symbols = {value.shape[0] for value in wanted if value.shape is not None and len(value.shape) > 1}
    feeds = {}
    for value in wanted:
        if value.shape is None or not value.is_tensor:
            return None
        shape = tuple(
            size if isinstance(size, int) else (open_size if axis and _other(size, symbols) else batch)
            for axis, size in enumerate(value.shape)
        )
        array = _array(value, shape, noise)
        if array is None:
            return None
        feeds[value.name] = array
    return feeds


def _other(symbol: str | None, symbols: Container[int | str | None]) -> bool:
    """Whether an axis is none of the batch."""
    return not symbol or symbol not in symbols


def _array(value: GraphValue, shape: tuple[int, ...], noise: Noise) -> np.ndarray | None:
    element = element_type(value.element_number)
    if element is None or element.dtype is None or math.prod(shape) > MOST_ELEMENTS:
        return None
    if element.dtype is DType.BFLOAT16:
        try:
            bits = float32_to_bfloat16(noise.normal(shape).astype(np.float32))
            return bfloat16_array(bits, "ml_dtypes")
        except MissingDependencyError:
            return None
    if element.dtype.is_float:
        return noise.normal(shape).astype(element.dtype.storage_dtype)
    return noise.coins(shape).astype(element.dtype.storage_dtype)
