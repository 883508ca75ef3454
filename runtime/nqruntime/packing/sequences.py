"""Parameter blocks of the kernels for transformers (`nqruntime.kernels.blocks`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nqruntime.kernels.blocks import PANEL_COLUMNS

from .areas import float_bits


@dataclass(frozen=True, slots=True, kw_only=True)
class Operand:
    """A computed array of some axes.

    Attributes
    ----------
    address : int
    steps : sequence of int
        Floats from one element to the next, by axis.
    """

    address: int
    steps: Sequence[int]

    @property
    def outer_bytes(self) -> list[int]:
        """Bytes from one element to the next along all axes but the last."""
        return [4 * step for step in self.steps[:-1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Formula:
    """What is computed of each element.

    Attributes
    ----------
    operation : int
        Of two values, 0 for one.
    function : int
        Of the operation's result, 0 for none.
    scale : float
        Factor of the first value.
    alpha, beta : float
        Parameters of the function.
    low, high : float
        The result is clamped to this range.
    """

    operation: int = 0
    function: int = 0
    scale: float = 1.0
    alpha: float = 1.0
    beta: float = 0.0
    low: float = -np.inf
    high: float = np.inf


def elementwise(
    shape: Sequence[int], first: Operand, second: Operand | None, out: Operand, formula: Formula
) -> np.ndarray:
    """Return the parameters of a computation element by element on arrays of four axes.

    The second operand's last step is 0 or 1, the output's is 1.
    """
    rows = shape[0] * shape[1] * shape[2]
    other = second if second is not None else Operand(address=0, steps=(0, 0, 0, 0))
    places = [0, rows, first.address, out.address, shape[1], shape[2], *first.outer_bytes, *out.outer_bytes]
    places += [other.address, *other.outer_bytes, first.steps[-1], other.steps[-1], shape[-1]]
    places += [formula.operation, formula.function]
    numbers = (formula.scale, formula.alpha, formula.beta, formula.low, formula.high)
    return np.array(places + [float_bits(number) for number in numbers], dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vectors:
    """Vectors one after the other: address, and floats from one to the next."""

    address: int
    pitch: int


def softmax_rows(
    shape: Sequence[int], source: Vectors, addend: Operand | None, out: Vectors, scale: float
) -> np.ndarray:
    """Return the parameters of the softmax of vectors, which are an array of three axes."""
    rows = shape[0] * shape[1] * shape[2]
    other = addend if addend is not None else Operand(address=0, steps=(0, 0, 0, 0))
    places = [0, rows, source.address, 4 * source.pitch, out.address, 4 * out.pitch, shape[-1]]
    places += [other.address, shape[1], shape[2], *other.outer_bytes, float_bits(scale)]
    return np.array(places, dtype=np.int64)


def normal_rows(
    shape: tuple[int, int],
    source: Vectors,
    addend: Vectors | None,
    out: Vectors,
    *,
    factors: int,
    bias: int,
    epsilon: float,
    is_centred: bool,
) -> np.ndarray:
    """Return the parameters of a normalization of vectors of shape (rows, columns)."""
    rows, columns = shape
    other = addend if addend is not None else Vectors(address=0, pitch=0)
    places = [0, rows, source.address, 4 * source.pitch, out.address, 4 * out.pitch, columns]
    places += [other.address, 4 * other.pitch, factors, bias]
    places += [float_bits(epsilon), float_bits(1 / columns), int(is_centred)]
    return np.array(places, dtype=np.int64)


def average_rows(shape: tuple[int, int, int], source: Operand, out: Vectors, *, factor: float) -> np.ndarray:
    """Return the parameters of the sums over the second of three axes, times a factor."""
    groups, rows, columns = shape
    places = [0, groups, source.address, *source.outer_bytes[:1], out.address, 4 * out.pitch, columns]
    places += [*source.outer_bytes[1:], rows, float_bits(factor)]
    return np.array(places, dtype=np.int64)


def batched(
    pairs: Sequence[int],
    shape: tuple[int, int, int],
    operands: Sequence[Operand],
    panel: int,
    scale: float,
) -> np.ndarray:
    """Return the parameters of products of pairs of matrices.

    Parameters
    ----------
    pairs : sequence of int
        Three sizes.
    shape : (int, int, int)
        Rows, inputs and columns.
    operands : sequence of Operand
        First and second values and the output, of five axes, the last two those of matrices. The last step of
        the first value and the output is 1, of the second value one of both.
    panel : int
        Address of `panel_floats(inputs)` floats that nothing else uses meanwhile.
    """
    first, second, out = operands
    n_panels = -(-shape[2] // PANEL_COLUMNS)
    n_pairs = pairs[0] * pairs[1] * pairs[2]
    places = [0, n_panels * n_pairs, first.address, second.address, out.address, *shape, pairs[1], pairs[2]]
    for operand in operands:
        places += operand.outer_bytes[:3]
    places += [4 * first.steps[3], 4 * second.steps[3], 4 * second.steps[4], 4 * out.steps[3]]
    places += [n_panels, panel, float_bits(scale)]
    return np.array(places, dtype=np.int64)


def panel_floats(inputs: int) -> int:
    """Return the size of the buffer of a batched product."""
    return -(-inputs // 16) * 16 * PANEL_COLUMNS
