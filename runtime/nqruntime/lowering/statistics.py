"""Softmax, normalization by mean and deviation, and means over axes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from nqruntime.kernels.blocks import ADD, AVERAGE_ROWS, BATCHED, NORMAL_ROWS, SOFTMAX_ROWS
from nqruntime.packing.areas import address, aligned_copy
from nqruntime.packing.sequences import (
    Formula,
    Operand,
    Vectors,
    average_rows,
    batched,
    normal_rows,
    panel_floats,
    softmax_rows,
)

from .layouts import packed_rows
from .operation import Operation, Shape
from .plan import PlacedRows, PlacedStrides, PlanBuilder, UnplannableError
from .strides import Strides, joined_axes, packed_strides


def _vectors(placed: PlacedRows) -> Vectors:
    return Vectors(address=placed.address, pitch=placed.layout.pitch)


@dataclass(slots=True, kw_only=True)
class Softmax(Operation):
    """Softmax along the last axis of the first input times a factor, plus an addend.

    Attributes
    ----------
    inputs : list of str
        One value, or the addend as a second one, which broadcasts to the first one's shape.
    axis : int
        Must be the last one.
    is_flat : bool
        Whether all axes from `axis` on are one, as in old opsets.
    scale : float
    addend : ndarray of float32 or None
    """

    axis: int
    is_flat: bool
    scale: float = 1.0
    addend: np.ndarray | None = None

    @property
    def label(self) -> str:
        """What is computed."""
        has_addend = self.addend is not None or len(self.inputs) > 1
        return "sum and softmax" if has_addend else "softmax"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the addend."""
        return 0 if self.addend is None else self.addend.nbytes

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the input; the addend is the smaller of two values."""
        if len(self.inputs) > 1 and self.scale == 1:
            self.inputs.sort(key=lambda name: -math.prod(shapes[name]))
        shape = shapes[self.inputs[0]]
        axis = self.axis % len(shape) if -len(shape) <= self.axis < len(shape) else -1
        if 0 in shape or axis < 0 or math.prod(shape[axis + 1 :]) != 1:
            raise UnplannableError
        if axis != len(shape) - 1 and not self.is_flat:
            raise UnplannableError
        try:
            fits = np.broadcast_shapes(shape, self._addend_shape(shapes)) == shape
        except ValueError:
            fits = False
        if not fits:
            raise UnplannableError
        return shape

    def _addend_shape(self, shapes: dict[str, Shape]) -> Shape:
        if self.addend is not None:
            return self.addend.shape
        return shapes[self.inputs[1]] if len(self.inputs) > 1 else ()

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the step."""
        shape = shapes[self.output]
        source = plan.rows(self.inputs[0])
        out = plan.define_rows(self.output, packed_rows(shape))
        addend: PlacedStrides | None = None
        if self.addend is not None:
            values = aligned_copy(self.addend)
            plan.keep(values)
            addend = PlacedStrides(layout=packed_strides(self.addend.shape), address=address(values))
        elif len(self.inputs) > 1:
            placed = plan.packed(self.inputs[1])
            addend = PlacedStrides(layout=Strides.of(placed.layout), address=placed.address)
        sizes, operand = [1, 1, source.layout.n_vectors, shape[-1]], None
        if addend is not None:
            layout = addend.layout.expanded(shape)
            found = joined_axes(shape[:-1], layout.steps[:-1], n_axes=3)
            if found is None or (layout.steps[-1] != 1 and shape[-1] > 1):
                raise UnplannableError
            sizes = [*found[0], shape[-1]]
            operand = Operand(address=addend.address, steps=[*found[1][0], 1])
        block = softmax_rows(sizes, _vectors(source), operand, _vectors(out), self.scale)
        plan.step(SOFTMAX_ROWS, block, self.label)


@dataclass(slots=True, kw_only=True)
class Normal(Operation):
    """Vectors minus their mean over their deviation, times factors plus a bias.

    Attributes
    ----------
    inputs : list of str
        One value, or two whose sum is taken.
    axis : int
        First axis of those that are a vector.
    factors, bias : ndarray of float32 or None
        As many elements as a vector, or one.
    epsilon : float
        Added to the variance.
    is_centred : bool
        Whether the mean is subtracted.
    """

    axis: int
    epsilon: float
    factors: np.ndarray | None = None
    bias: np.ndarray | None = None
    is_centred: bool = True

    @property
    def label(self) -> str:
        """What is computed."""
        return "sum and normalization" if len(self.inputs) > 1 else "normalization"

    @property
    def weight_bytes(self) -> int:
        """Bytes of factors and bias."""
        return sum(array.nbytes for array in (self.factors, self.bias) if array is not None)

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the input."""
        given = [shapes[name] for name in self.inputs]
        try:
            shape = np.broadcast_shapes(*given)
        except ValueError:
            raise UnplannableError from None
        if 0 in shape or not -len(shape) <= self.axis < len(shape):
            raise UnplannableError
        columns = math.prod(shape[self.axis % len(shape) :])
        sizes = [array.size for array in (self.factors, self.bias) if array is not None]
        if any(size not in (1, columns) for size in sizes):
            raise UnplannableError
        return shape

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the step."""
        shape = shapes[self.output]
        axis = self.axis % len(shape)
        columns = math.prod(shape[axis:])
        sources = self._sources(plan, shapes, axis)
        out = plan.define_rows(self.output, packed_rows(shape))
        vectors = [_as_columns(source, columns) for source in sources]
        constants = []
        for values, neutral in ((self.factors, 1), (self.bias, 0)):
            wide = np.broadcast_to(np.float32(neutral) if values is None else values.reshape(-1), (columns,))
            constants.append(aligned_copy(wide.astype(np.float32)))
        plan.keep(*constants)
        block = normal_rows(
            (math.prod(shape[:axis]), columns),
            vectors[0],
            vectors[1] if len(vectors) > 1 else None,
            Vectors(address=out.address, pitch=columns),
            factors=address(constants[0]),
            bias=address(constants[1]),
            epsilon=self.epsilon,
            is_centred=self.is_centred,
        )
        plan.step(NORMAL_ROWS, block, self.label)

    def _sources(self, plan: PlanBuilder, shapes: dict[str, Shape], axis: int) -> list[PlacedRows]:
        """Return the values as vectors; their sum if they do not have the same shape."""
        shape = shapes[self.output]
        if any(shapes[name] != shape for name in self.inputs):
            layout = packed_rows(shape)
            total = PlacedRows(layout=layout, address=plan.scratch(layout.size))
            target = PlacedStrides(layout=packed_strides(shape), address=total.address)
            first, second = (plan.strides(name) for name in self.inputs)
            plan.compute(shape, first, second, target, formula=Formula(operation=ADD), label="sum")
            return [total]
        if axis == len(shape) - 1:
            return [plan.rows(name) for name in self.inputs]
        return [plan.packed(name) for name in self.inputs]


def _as_columns(placed: PlacedRows, columns: int) -> Vectors:
    """Return a value as vectors of so many columns, one axis or several packed ones."""
    is_last = placed.layout.n_features == columns
    return Vectors(address=placed.address, pitch=placed.layout.pitch if is_last else columns)


@dataclass(slots=True, kw_only=True)
class Mean(Operation):
    """The mean or the sum over neighbouring axes.

    Attributes
    ----------
    axes : tuple of int
    keeps_axes : bool
    is_sum : bool
    """

    axes: tuple[int, ...]
    keeps_axes: bool
    is_sum: bool = False

    @property
    def label(self) -> str:
        """What is computed."""
        return "sum of rows" if self.is_sum else "mean of rows"

    def _range(self, shape: Shape) -> tuple[int, int]:
        """Return the first axis and the one after the last."""
        rank = len(shape)
        axes = sorted(axis % rank for axis in self.axes if -rank <= axis < rank)
        if not axes or len(axes) != len(self.axes) or axes != list(range(axes[0], axes[-1] + 1)):
            raise UnplannableError
        return axes[0], axes[-1] + 1

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the output."""
        shape = shapes[self.inputs[0]]
        if 0 in shape:
            raise UnplannableError
        first, stop = self._range(shape)
        if stop - first == len(shape) and not self.keeps_axes:
            raise UnplannableError
        return (*shape[:first], *((1,) * (stop - first) if self.keeps_axes else ()), *shape[stop:])

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the step."""
        given = shapes[self.inputs[0]]
        first, stop = self._range(given)
        shape = (math.prod(given[:first]), math.prod(given[first:stop]), math.prod(given[stop:]))
        placed = plan.strides(self.inputs[0])
        layout = placed.layout.reshaped(shape)
        place = placed.address
        if layout is None or (layout.step != 1 and stop < len(given)):
            place = plan.packed(self.inputs[0]).address
            layout = packed_strides(shape)
        out = plan.define_rows(self.output, packed_rows(shapes[self.output]))
        factor = 1.0 if self.is_sum else 1 / shape[1]
        if stop == len(given):
            self._append_last(plan, Operand(address=place, steps=layout.steps[:2]), out, shape[:2], factor)
            return
        source = Operand(address=place, steps=layout.steps)
        target = Vectors(address=out.address, pitch=shape[2])
        plan.step(AVERAGE_ROWS, average_rows(shape, source, target, factor=factor), self.label)

    def _append_last(
        self, plan: PlanBuilder, source: Operand, out: PlacedRows, shape: tuple[int, int], factor: float
    ) -> None:
        """Append the means of vectors: their products with ones."""
        n_rows, columns = shape
        if columns > 1 and source.steps[1] != 1:
            raise UnplannableError
        ones = aligned_copy(np.ones(columns, dtype=np.float32))
        plan.keep(ones)
        operands = [
            Operand(address=source.address, steps=(0, 0, 0, source.steps[0], 1)),
            Operand(address=address(ones), steps=(0, 0, 0, 1, 1)),
            Operand(address=out.address, steps=(0, 0, 0, 1, 1)),
        ]
        panel = plan.private(panel_floats(columns))
        plan.step(BATCHED, batched((1, 1, 1), (n_rows, columns, 1), operands, panel, factor), self.label)
