"""Recurrent layers: products of the inputs for all steps at once, then a loop over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nqruntime.kernels.blocks import (
    DIRECTION_PLACES,
    FIRST_DIRECTION,
    GRU,
    GRU_RESETS_PRODUCT,
    LANES,
    LSTM,
    RECURRENT,
    RNN_RELU,
    RNN_TANH,
)
from nqruntime.packing.areas import address, aligned, aligned_copy, round_up
from nqruntime.packing.choice import row_candidates
from nqruntime.packing.rows import BUFFER_FLOATS, PackedRows
from nqruntime.packing.sequences import Formula
from nqruntime.symbols import MatrixWeights

from .known import known_value
from .layouts import Rows, packed_rows
from .measuring import Chooser
from .operation import Operation, Shape
from .plan import PlacedStrides, PlanBuilder, UnplannableError
from .product import Product
from .strides import Strides, packed_strides

GATES = {LSTM: 4, GRU: 3, GRU_RESETS_PRODUCT: 3, RNN_TANH: 1, RNN_RELU: 1}
_NAMES = {LSTM: "LSTM", GRU: "GRU", GRU_RESETS_PRODUCT: "GRU", RNN_TANH: "RNN", RNN_RELU: "RNN"}


@dataclass(slots=True, kw_only=True)
class StateProduct:
    """Recurrent weights of some gates of a direction, multiplied with the states in each step.

    Attributes
    ----------
    weights : MatrixWeights or None
        None once a way to store them is chosen.
    bias : ndarray of float32 or None
    packed : PackedRows or None
    """

    weights: MatrixWeights | None
    bias: np.ndarray | None = None
    packed: PackedRows | None = None

    @property
    def weight_bytes(self) -> int:
        """Bytes of the matrix and the bias."""
        bias = 0 if self.bias is None else self.bias.nbytes
        return bias + (0 if self.packed is None else self.packed.weight_bytes)

    def chosen(self, chooser: Chooser, n_batch: int, pitch: int, question: str) -> PackedRows:
        """Return the matrix in the order that is fastest for so many states."""
        if self.packed is None:
            assert self.weights is not None
            candidates = row_candidates(self.weights, low_memory=chooser.low_memory)
            forms = [form for pack in candidates.values() if (form := pack()) is not None]

            def append(plan: PlanBuilder, form: PackedRows) -> None:
                source, out = plan.scratch(n_batch * pitch), plan.scratch(n_batch * room(form.n_rows))
                block = self.block(plan, form, (source, pitch), (out, room(form.n_rows)), n_batch)
                plan.step(form.kernel, block, form.label)

            self.packed = chooser.fastest(forms, append, question)
            self.weights = None
        return self.packed

    def block(
        self, plan: PlanBuilder, form: PackedRows, source: tuple[int, int], out: tuple[int, int], n_batch: int
    ) -> np.ndarray:
        """Return the parameters of the product; source and output are address and floats between vectors."""
        bias = form.bias(self.bias)
        plan.keep(bias, form)
        return form.block(
            source=source[0],
            source_pitch=source[1],
            n_sources=n_batch,
            out=out[0],
            out_pitch=out[1],
            bias=address(bias),
            low=-np.inf,
            high=np.inf,
            buffer=plan.private(BUFFER_FLOATS),
        )


def room(n_rows: int) -> int:
    """Return the floats of a vector of products, with what kernels write and read beyond."""
    return round_up(n_rows + LANES, 64)


@dataclass(slots=True, kw_only=True)
class Direction:
    """One direction of a layer.

    Attributes
    ----------
    is_reverse : bool
        Whether it runs from the end.
    inputs : Product
        With the biases that are added before the gates.
    states : list of StateProduct
        One product, or two of a GRU that resets its states.
    """

    is_reverse: bool
    inputs: Product
    states: list[StateProduct]


@dataclass(slots=True, kw_only=True)
class Recurrent(Operation):
    """LSTM, GRU or RNN in one or two directions.

    Attributes
    ----------
    inputs : list of str
        The sequence, then initial states that are not known.
    cell : int
    units : int
    directions : list of Direction
    chooser : Chooser
    initial : list of (str or ndarray or None)
        State and, of an LSTM, cell before the first step; None for zeros.
    batch_first : bool
        ONNX's layout 1.
    order : tuple of int or None
        Axes of the output in the order in which they are stored; the last one stays the last.
    """

    cell: int
    units: int
    directions: list[Direction]
    chooser: Chooser
    initial: list[str | np.ndarray | None] = field(default_factory=lambda: [None, None])
    batch_first: bool = False
    order: tuple[int, ...] | None = None

    @property
    def label(self) -> str:
        """Cell and forms of the weights."""
        forms = [d.inputs.label for d in self.directions[:1]]
        forms += [p.packed.label for d in self.directions[:1] for p in d.states if p.packed is not None]
        return f"{_NAMES[self.cell]}, {'; '.join(dict.fromkeys(forms))}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        states = sum(product.weight_bytes for d in self.directions for product in d.states)
        return states + sum(d.inputs.weight_bytes for d in self.directions)

    def _sizes(self, shapes: dict[str, Shape]) -> tuple[int, int]:
        """Return steps and vectors of the batch."""
        given = shapes[self.inputs[0]]
        if len(given) != 3 or 0 in given:
            raise UnplannableError
        return (given[1], given[0]) if self.batch_first else (given[0], given[1])

    def _sorted(self, steps: int, directions: int, batch: int) -> Shape:
        """Return the shape of the output before it is transposed."""
        return (
            (batch, steps, directions, self.units)
            if self.batch_first
            else (steps, directions, batch, self.units)
        )

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of all states of all steps."""
        steps, batch = self._sizes(shapes)
        for direction in self.directions:
            shapes[direction.inputs.output] = direction.inputs.shape(shapes)
        for state in self.initial[: 2 if self.cell == LSTM else 1]:
            if state is None:
                continue
            given = shapes[state] if isinstance(state, str) else state.shape
            if given != self.state_shape(shapes):
                raise UnplannableError
        shape = self._sorted(steps, len(self.directions), batch)
        if self.order is None:
            return shape
        if sorted(self.order) != [0, 1, 2, 3]:
            raise UnplannableError
        return tuple(shape[axis] for axis in self.order)

    def state_shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the states of one step."""
        batch, directions = self._sizes(shapes)[1], len(self.directions)
        return (batch, directions, self.units) if self.batch_first else (directions, batch, self.units)

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the products of the inputs, the first states and the loop."""
        steps, batch = self._sizes(shapes)
        for direction in self.directions:
            direction.inputs.lower(plan, shapes)
        pitch = room(self.units)
        layout = Rows(shape=(len(self.directions), batch, self.units), pitch=pitch)
        states = [plan.define_rows(f"{self.output}#{i}", layout) for i in range(2)]
        for i, state in enumerate(states):
            if i == 0 or self.cell == LSTM:
                self._append_initial(plan, shapes, self.initial[i], Strides.of(layout), state.address)
        shape = shapes[self.output]
        out = plan.define_rows(self.output, packed_rows(shape))
        target = packed_strides(shape)
        if self.order is not None:
            target = target.transposed(np.argsort(self.order).tolist())
        block = np.zeros(FIRST_DIRECTION + DIRECTION_PLACES * len(self.directions), dtype=np.int64)
        block[:7] = [0, len(self.directions), self.cell, steps, batch, self.units, self.chooser.entry]
        for number, direction in enumerate(self.directions):
            moved = 4 * number * batch * pitch
            places = [state.address + moved for state in states]
            first = out.address + 4 * number * target.steps[2 if self.batch_first else 1]
            part = self._part(plan, direction, batch, places, pitch)
            part[49:55] = self._ends(plan, direction, steps, first, target)
            start = FIRST_DIRECTION + DIRECTION_PLACES * number
            block[start : start + DIRECTION_PLACES] = part
        plan.step(RECURRENT, block, self.label)

    def _part(
        self, plan: PlanBuilder, direction: Direction, batch: int, states: Sequence[int], pitch: int
    ) -> np.ndarray:
        """Return the places of a direction that its states fill."""
        part = np.zeros(DIRECTION_PLACES, dtype=np.int64)
        products = room(GATES[self.cell] * self.units)
        out = [plan.scratch(batch * products + LANES) for _ in direction.states]
        for i, product in enumerate(direction.states):
            question = f"{self.nodes[0]} states {i} of {direction.is_reverse} for {batch}"
            form = product.chosen(self.chooser, batch, pitch, question)
            source = states[0] if i == 0 else states[1]
            block = product.block(plan, form, (source, pitch), (out[i], products), batch)
            part[24 * i : 24 * i + block.size] = block
            part[48 if i == 0 else 61] = form.kernel
        part[55:61] = [states[0], 4 * pitch, states[1], out[0], 4 * products, out[-1]]
        return part

    def _ends(
        self,
        plan: PlanBuilder,
        direction: Direction,
        steps: int,
        out: int,
        target: Strides,
    ) -> list[int]:
        """Return where products of inputs and outputs begin, and the bytes between steps and vectors.

        `out` is the address of the direction's first output.
        """
        products = plan.strides(direction.inputs.output)
        over_time, over_batch = (1, 0) if self.batch_first else (0, 2)
        given = products.layout.steps
        input_steps = (given[1], given[0]) if self.batch_first else (given[0], given[1])
        found = []
        for start, (step, vector) in (
            (products.address, input_steps),
            (
                out,
                (target.steps[over_time], target.steps[over_batch]),
            ),
        ):
            last = 4 * (steps - 1) * step if direction.is_reverse else 0
            found += [start + last, -4 * step if direction.is_reverse else 4 * step, 4 * vector]
        return found

    def _append_initial(
        self,
        plan: PlanBuilder,
        shapes: dict[str, Shape],
        state: str | np.ndarray | None,
        layout: Strides,
        target: int,
    ) -> None:
        """Append a copy of a state to where the loop expects it."""
        known = known_value(shapes, state) if isinstance(state, str) else state
        if isinstance(state, str) and known is None:
            source = plan.strides(state)
        elif known is None or not known.any():
            zeros = aligned(LANES, np.float32)
            plan.keep(zeros)
            source = PlacedStrides(layout=packed_strides(()), address=address(zeros))
        else:
            values = aligned_copy(known)
            plan.keep(values)
            source = PlacedStrides(layout=packed_strides(known.shape), address=address(values))
        if self.batch_first and source.layout.shape:
            source = PlacedStrides(layout=source.layout.transposed((1, 0, 2)), address=source.address)
        out = PlacedStrides(layout=layout, address=target)
        plan.compute(layout.shape, source, None, out, formula=Formula(), label="first states")


@dataclass(slots=True, kw_only=True)
class LastState(Operation):
    """State or cell of a recurrent layer after the last step.

    Attributes
    ----------
    layer : Recurrent
    number : int
    """

    layer: Recurrent
    number: int

    @property
    def label(self) -> str:
        """Nothing is computed."""
        return self.layer.label

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the states."""
        return self.layer.state_shape(shapes)

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Let the output lie where the loop leaves it."""
        placed = plan.strides(f"{self.layer.output}#{self.number}")
        layout = placed.layout.transposed((1, 0, 2)) if self.layer.batch_first else placed.layout
        plan.alias_strides(self.output, placed.address, layout)
