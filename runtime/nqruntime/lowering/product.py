"""Products of values with constant matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from nqruntime.kernels.blocks import LANES, QUANTIZE_ROWS, SKIP_COLUMNS, SLICE_ROWS, SPARSE_PLANES, TRANSPOSE
from nqruntime.packing.areas import address, aligned_copy
from nqruntime.packing.choice import row_candidates
from nqruntime.packing.columns import PackedColumns, pack_columns
from nqruntime.packing.copy_steps import transpose
from nqruntime.packing.int8_rows import TABLE_FLOATS, Int8Rows, pack_int8_rows
from nqruntime.packing.int8_weights import int8_weights
from nqruntime.packing.plane_layout import Area
from nqruntime.packing.plane_steps import PlanesCall, sparse_planes
from nqruntime.packing.rows import BUFFER_FLOATS, PackedRows, nonzeros_of_slices
from nqruntime.packing.skipping import SkippedColumns, pack_skipped
from nqruntime.symbols import MatrixWeights

from .layouts import Rows
from .measuring import Chooser
from .operation import Clamp, Operation, Shape
from .plan import PlacedRows, PlanBuilder, UnplannableError

_MANY_VECTORS = 8
_SMALL_BYTES = 1 << 18
_LEAST_SHARE = 0.1
_UNKNOWN = "not chosen before the first run"

RowForm = PackedRows | Int8Rows
AnyForm = RowForm | PackedColumns | SkippedColumns
Form = TypeVar("Form", RowForm, RowForm | PackedColumns)


@dataclass(slots=True, kw_only=True)
class Product(Operation):
    """A constant matrix times the vectors along a value's last axis, plus a bias, clamped.

    Attributes
    ----------
    weights : MatrixWeights or None
        None once a way to store them is chosen.
    rank : int or None
        Rank that the operator demands of its input.
    bias : ndarray of float32, shape (n_rows,), or None
    packed : PackedRows, Int8Rows or None
        For any number of vectors.
    columns : PackedColumns or None
        For as many vectors as came last.
    skipped : SkippedColumns or None
        For single vectors with many zeros.
    most_nonzeros : int
        Nonzeros of a vector up to which it is used.
    """

    weights: MatrixWeights | None
    chooser: Chooser
    rank: int | None = None
    bias: np.ndarray | None = None
    clamp: Clamp = field(default_factory=Clamp)
    packed: RowForm | None = None
    columns: PackedColumns | None = None
    skipped: SkippedColumns | None = None
    most_nonzeros: int = 0

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
        if self.packed is None:
            return _UNKNOWN
        label = self.packed.label if self.columns is None else self.columns.label
        return label if self.skipped is None else f"{label}; {self.skipped.label} where it pays"

    @property
    def is_int8(self) -> bool:
        """Whether its activations are rounded to bytes."""
        return self.packed is not None and self.packed.is_int8 and self.columns is None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrix and the bias."""
        held = sum(form.weight_bytes for form in (self.packed, self.columns, self.skipped) if form)
        return held + (0 if self.bias is None else self.bias.nbytes)

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the input's shape with another last axis."""
        given = shapes[self.inputs[0]]
        n_rows, n_columns = self.matrix_shape
        if not given or given[-1] != n_columns or 0 in given or self.rank not in (None, len(given)):
            raise UnplannableError
        return (*given[:-1], n_rows)

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the product."""
        source = plan.rows(self.inputs[0])
        shape = shapes[self.output]
        target_layout = plan.product_rows(self.output, shape)
        form = self._chosen(source.layout, target_layout)
        target = plan.define_rows(self.output, target_layout, direct=plan.is_direct(self.output, shape))
        if source.layout.n_vectors == 1 and self.skipped is not None:
            self._append(plan, self.skipped, source, target)
        self._append(plan, form, source, target)

    def _append(self, plan: PlanBuilder, form: AnyForm, source: PlacedRows, target: PlacedRows) -> None:
        plan.keep(form)
        if isinstance(form, SkippedColumns):
            self._append_skipped(plan, form, source, target)
        elif isinstance(form, PackedRows):
            self._append_rows(plan, form, source, target)
        elif isinstance(form, Int8Rows):
            self._append_int8(plan, form, source, target)
        else:
            self._append_columns(plan, form, source, target)

    def _append_skipped(
        self, plan: PlanBuilder, packed: SkippedColumns, source: PlacedRows, target: PlacedRows
    ) -> None:
        bias = packed.bias(self.bias)
        plan.keep(bias)
        block = packed.block(
            source=source.address,
            out=target.address,
            bias=address(bias),
            low=self.clamp.low,
            high=self.clamp.high,
            most_nonzeros=self.most_nonzeros,
        )
        plan.step(SKIP_COLUMNS, block, packed.label)

    def _append_rows(
        self, plan: PlanBuilder, packed: PackedRows, source: PlacedRows, target: PlacedRows
    ) -> None:
        bias = packed.bias(self.bias)
        plan.keep(bias)
        block = packed.block(
            source=source.address,
            source_pitch=source.layout.pitch,
            n_sources=source.layout.n_vectors,
            out=target.address,
            out_pitch=target.layout.pitch,
            bias=address(bias),
            low=self.clamp.low,
            high=self.clamp.high,
            buffer=plan.private(BUFFER_FLOATS),
        )
        plan.step(packed.kernel, block, packed.label)

    def _append_int8(
        self, plan: PlanBuilder, packed: Int8Rows, source: PlacedRows, target: PlacedRows
    ) -> None:
        """Append the product of the vectors as bytes, after the step that makes these."""
        n_sources, bias = source.layout.n_vectors, packed.bias(self.bias)
        plan.keep(bias)
        table = plan.scratch(TABLE_FLOATS * n_sources)
        quantized = plan.scratch(n_sources * packed.source_pitch // 4)
        block = packed.quantize_block(
            source=source.address,
            source_pitch=source.layout.pitch,
            n_sources=n_sources,
            out=quantized,
            table=table,
        )
        plan.step(QUANTIZE_ROWS, block, "source to int8")
        block = packed.block(
            source=quantized,
            n_sources=n_sources,
            table=table,
            out=target.address,
            out_pitch=target.layout.pitch,
            bias=address(bias),
            low=self.clamp.low,
            high=self.clamp.high,
        )
        plan.step(packed.kernel, block, packed.label)

    def _append_columns(
        self, plan: PlanBuilder, packed: PackedColumns, source: PlacedRows, target: PlacedRows
    ) -> None:
        """Append the product of the transposed vectors, between two transpositions."""
        (n_rows, n_columns), n_vectors = self.matrix_shape, source.layout.n_vectors
        layout = packed.layout
        given = plan.scratch(n_columns * layout.size + LANES)
        made = plan.scratch(n_rows * layout.size + LANES)
        block = transpose(
            source=source.address,
            source_pitch=source.layout.pitch,
            shape=(n_vectors, n_columns),
            out=given,
            out_pitch=layout.size,
            written=n_vectors,
        )
        plan.step(TRANSPOSE, block, "transposition")
        bias = aligned_copy(np.zeros(n_rows, dtype=np.float32) if self.bias is None else self.bias)
        mask = layout.mask()
        plan.keep(bias, mask)
        call = PlanesCall(
            first=0,
            last=n_rows,
            n_images=1,
            source=Area.of(given, layout, n_columns),
            out=Area.of(made, layout, n_rows),
            layout=layout,
            mask=mask,
            bias=bias,
            low=self.clamp.low,
            high=self.clamp.high,
        )
        plan.step(SPARSE_PLANES, sparse_planes(call, packed.weights), packed.label)
        block = transpose(
            source=made,
            source_pitch=layout.size,
            shape=(n_rows, n_vectors),
            out=target.address,
            out_pitch=target.layout.pitch,
            written=n_rows,
        )
        plan.step(TRANSPOSE, block, "transposition")

    def _chosen(self, source: Rows, target: Rows) -> RowForm | PackedColumns:
        """Return the matrix in the order that is fastest for so many vectors."""
        if self.packed is None:
            assert self.weights is not None
            candidates = row_candidates(self.weights, low_memory=self.chooser.low_memory)
            exact = [found for pack in candidates.values() if (found := pack()) is not None]
            forms: list[RowForm] = [*exact]
            if self.chooser.int8:
                forms += [pack_int8_rows(weights) for weights in int8_weights(self.weights)]
            self.packed = self._fastest(forms, source, target)
            sparse = next((form for form in exact if form.kernel == SLICE_ROWS), None)
            self.weights = None
            if sparse is not None and source.n_vectors == 1 and not self.packed.is_int8:
                self._choose_skipping(sparse, source, target)
        else:
            packed = self.packed
            sparse = packed if isinstance(packed, PackedRows) and packed.kernel == SLICE_ROWS else None
        if source.n_vectors < _MANY_VECTORS or sparse is None or self.chooser.low_memory:
            return self.packed
        if self.columns is None or self.columns.layout.width != source.n_vectors:
            columns = None
            if not sparse.has_factors:
                nonzeros, shape = nonzeros_of_slices(sparse), self.matrix_shape
                columns = pack_columns(nonzeros, sparse.codebook, shape, source.n_vectors)
            either: list[RowForm | PackedColumns] = (
                [self.packed] if columns is None else [self.packed, columns]
            )
            if columns is None or self._fastest(either, source, target) is not columns:
                return self.packed
            self.columns, self.packed = columns, sparse
        return self.columns

    def _choose_skipping(self, sparse: PackedRows, source: Rows, target: Rows) -> None:
        """Keep a small matrix by columns, too, if that is faster for vectors with many zeros."""
        assert self.packed is not None
        if sparse.weight_bytes > _SMALL_BYTES:
            return
        nonzeros = nonzeros_of_slices(sparse)
        skipped = pack_skipped(nonzeros, sparse.codebook, sparse.factors, self.matrix_shape)
        if skipped is None:
            return
        n_inputs, question = self.matrix_shape[1], f"{self.nodes[0]} nonzeros"
        self.most_nonzeros = n_inputs
        append = self._trial(source, target)
        most = self.chooser.most_nonzeros(n_inputs, skipped, self.packed, append, question)
        self.most_nonzeros = most
        if most > n_inputs * _LEAST_SHARE:
            self.skipped = skipped

    def _trial(self, source: Rows, target: Rows) -> Callable[[PlanBuilder, AnyForm], None]:
        """Return what appends the product in a form to a plan, from and to memory of no value."""

        def append(plan: PlanBuilder, form: AnyForm) -> None:
            given = PlacedRows(layout=source, address=plan.scratch(source.size))
            made = PlacedRows(layout=target, address=plan.scratch(target.size))
            self._append(plan, form, given, made)

        return append

    def _fastest(self, forms: Sequence[Form], source: Rows, target: Rows) -> Form:
        question = f"{self.nodes[0]} for {source.n_vectors} at {source.pitch}"
        return self.chooser.fastest(forms, self._trial(source, target), question)
