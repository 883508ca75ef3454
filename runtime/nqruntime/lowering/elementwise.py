"""Operations and functions of elements, of one value or of two that broadcast."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from nqruntime.kernels import blocks
from nqruntime.packing.areas import address, aligned_copy
from nqruntime.packing.sequences import Formula

from .layouts import packed_rows
from .operation import Clamp, Operation, Shape
from .plan import PlacedStrides, PlanBuilder, UnplannableError
from .strides import Strides, packed_strides

_OPERATIONS = {
    blocks.ADD: "sum",
    blocks.SUBTRACT: "difference",
    blocks.SUBTRACT_FIRST: "difference",
    blocks.MULTIPLY: "product of elements",
    blocks.DIVIDE: "ratio",
    blocks.DIVIDE_BY_FIRST: "ratio",
    blocks.SMALLEST: "smallest",
    blocks.LARGEST: "largest",
}
_FUNCTIONS = {
    blocks.EXPONENTIAL: "exponential",
    blocks.TANH: "tanh",
    blocks.SIGMOID: "sigmoid",
    blocks.ERF: "error function",
    blocks.GELU: "Gelu",
    blocks.GELU_TANH: "Gelu by tanh",
    blocks.SILU: "SiLU",
    blocks.HARD_SIGMOID: "hard sigmoid",
    blocks.HARD_SWISH: "hard SiLU",
    blocks.SQUARE_ROOT: "square root",
    blocks.RECIPROCAL: "reciprocal",
    blocks.ABSOLUTE: "magnitude",
    blocks.NEGATIVE: "negative",
    blocks.LEAKY_RELU: "leaky Relu",
    blocks.ELU: "Elu",
}


@dataclass(slots=True, kw_only=True)
class Elementwise(Operation):
    """A function of the first input times a factor, operated on with a second value.

    Attributes
    ----------
    inputs : list of str
        One or two values, the second one only without a constant.
    formula : Formula
        Without its range.
    constant : ndarray of float32 or None
        The second value.
    n_reads : int
        How often the node of a square reads its input.
    """

    formula: Formula
    constant: np.ndarray | None = None
    clamp: Clamp = field(default_factory=Clamp)
    n_reads: int = 2

    @property
    def label(self) -> str:
        """What is computed."""
        parts = [_OPERATIONS.get(self.formula.operation), _FUNCTIONS.get(self.formula.function)]
        if self.formula.scale != 1:
            parts.insert(0, "factor")
        if not self.clamp.is_open:
            parts.append("clamp")
        return " and ".join(part for part in parts if part) or "copy"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the constant."""
        return 0 if self.constant is None else self.constant.nbytes

    @property
    def takes_function(self) -> bool:
        """Whether a function of the result can join."""
        return self.formula.function == 0 and self.clamp.is_open

    @property
    def is_factor(self) -> bool:
        """Whether it is the first input times a number, and nothing else."""
        formula = self.formula
        return formula.operation == 0 and self.takes_function

    def is_only(self, operation: int) -> bool:
        """Whether it is an operation of two values, and nothing else."""
        formula = self.formula
        return formula.operation == operation and formula.scale == 1 and self.takes_function

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape to which the values broadcast."""
        given = [shapes[name] for name in self.inputs]
        if self.constant is not None:
            given.append(self.constant.shape)
        try:
            found = np.broadcast_shapes(*given)
        except ValueError:
            raise UnplannableError from None
        if 0 in found or not found:
            raise UnplannableError
        return found

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the step."""
        first = plan.strides(self.inputs[0])
        second: PlacedStrides | None = None
        if self.constant is not None:
            values = aligned_copy(self.constant)
            plan.keep(values)
            second = PlacedStrides(layout=packed_strides(self.constant.shape), address=address(values))
        elif len(self.inputs) > 1:
            second = plan.strides(self.inputs[1])
            if second.layout.step != 1:
                packed = plan.packed(self.inputs[1])
                second = PlacedStrides(layout=Strides.of(packed.layout), address=packed.address)
        shape = shapes[self.output]
        out = plan.define_rows(self.output, packed_rows(shape))
        target = PlacedStrides(layout=packed_strides(shape), address=out.address)
        formula = replace(self.formula, low=self.clamp.low, high=self.clamp.high)
        plan.compute(shape, first, second, target, formula=formula, label=self.label)
