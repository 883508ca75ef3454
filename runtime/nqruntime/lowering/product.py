"""Products of values with constant matrices."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nqformat.kernels.objects import KernelLibrary
from nqruntime.packing.areas import address
from nqruntime.packing.choice import row_candidates
from nqruntime.packing.rows import BUFFER_FLOATS, PackedRows
from nqruntime.symbols import MatrixWeights

from .layouts import Rows, rows
from .measuring import fastest
from .operation import Clamp, Shape
from .plan import PlacedRows, PlanBuilder, UnplannableError
from .plane_choice import PlaneChoice


@dataclass(slots=True, kw_only=True)
class Product:
    """A constant matrix times the vectors along a value's last axis, plus a bias, clamped.

    Attributes
    ----------
    weights : MatrixWeights or None
        None once a way to store them is chosen.
    rank : int or None
        Rank that the operator demands of its input.
    bias : ndarray of float32, shape (n_rows,), or None
    packed : PackedRows or None
    """

    inputs: list[str]
    output: str
    nodes: list[int]
    weights: MatrixWeights | None
    library: KernelLibrary
    low_memory: bool
    rank: int | None = None
    bias: np.ndarray | None = None
    clamp: Clamp = field(default_factory=Clamp)
    packed: PackedRows | None = None

    @property
    def matrix_shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        if self.packed is not None:
            return self.packed.n_rows, self.packed.n_columns
        assert self.weights is not None
        return self.weights.shape

    @property
    def label(self) -> str:
        """Form of the weights."""
        return "not chosen before the first run" if self.packed is None else self.packed.label

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrix and the bias."""
        held = self.packed.weight_bytes if self.packed is not None else 0
        return held + (0 if self.bias is None else self.bias.nbytes)

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the input's shape with another last axis."""
        given = shapes[self.inputs[0]]
        n_rows, n_columns = self.matrix_shape
        if not given or given[-1] != n_columns or 0 in given or self.rank not in (None, len(given)):
            raise UnplannableError
        return (*given[:-1], n_rows)

    def constrain(self, choice: PlaneChoice, shapes: dict[str, Shape]) -> None:
        """Need no planes."""

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the product."""
        source = plan.rows(self.inputs[0])
        packed = self._chosen(source.layout)
        target = plan.define_rows(self.output, rows(shapes[self.output]))
        self._append(plan, packed, source, target)

    def _append(self, plan: PlanBuilder, packed: PackedRows, source: PlacedRows, target: PlacedRows) -> None:
        bias = packed.bias(self.bias)
        plan.keep(bias, packed)
        block = packed.block(
            source=source.address,
            source_pitch=source.layout.pitch,
            n_sources=source.layout.n_vectors,
            out=target.address,
            out_pitch=target.layout.pitch,
            bias=address(bias),
            low=self.clamp.low,
            high=self.clamp.high,
            buffer=plan.scratch(BUFFER_FLOATS),
        )
        plan.step(packed.kernel, block, packed.label)

    def _chosen(self, source: Rows) -> PackedRows:
        """Return the matrix in the order that is fastest, which is found once."""
        if self.packed is None:
            assert self.weights is not None
            candidates = row_candidates(self.weights, low_memory=self.low_memory)
            forms = [found for pack in candidates.values() if (found := pack()) is not None]
            target = rows((*source.shape[:-1], self.matrix_shape[0]))

            def append(plan: PlanBuilder, packed: PackedRows) -> None:
                given = PlacedRows(layout=source, address=plan.scratch(source.size))
                made = PlacedRows(layout=target, address=plan.scratch(target.size))
                self._append(plan, packed, given, made)

            self.packed = fastest(self.library, forms, append, low_memory=self.low_memory)
            self.weights = None
        return self.packed
