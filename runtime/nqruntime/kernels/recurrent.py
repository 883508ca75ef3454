"""Recurrent layers: the loop over time, with products of the state by the kernels of compressed weights.

The products of the inputs are there for all steps before. Each round multiplies the states with the recurrent
weights and computes the gates, 16 units at once. Directions are independent of each other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nqformat.kernels.memory import load_parameter
from nqformat.kernels.words import U0, U1, U64, helper

from .blocks import (
    DIRECTION_PLACES,
    FIRST_DIRECTION,
    GRU,
    GRU_RESET,
    GRU_RESETS_PRODUCT,
    LANES,
    LSTM,
    RNN_RELU,
    RNN_TANH,
)
from .emitter import VECTOR, Emitter, kernel_intrinsic
from .functions import sigmoid, tanh
from .lanes import constant_vector, first_lanes, less, one_of, store_lanes

_WORD = ir.IntType(64)


@intrinsic
def _run(typing_context: Any, entry: Any, kernel: Any, block: Any) -> Any:
    """Call the entry of the kernels (``KernelLibrary.entry``); its status, or -1 if it could not run."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), [_WORD.as_pointer(), _WORD.as_pointer(), _WORD, _WORD])
        places = [cgutils.alloca_once(builder, _WORD) for _ in range(2)]
        entry_function = builder.inttoptr(arguments[0], function.as_pointer())
        failed = builder.call(entry_function, [*places, *arguments[1:]])
        has_failed = builder.icmp_signed("!=", failed, ir.Constant(failed.type, 0))
        return builder.select(has_failed, ir.Constant(_WORD, -1), builder.load(places[0]))

    return types.int64(types.uint64, types.uint64, types.uint64), generate


class _Unit:
    """16 units of one vector of the batch: gates, states and what is stored."""

    def __init__(self, e: Emitter, moved: Any, lanes: Any, arguments: tuple[Any, ...]) -> None:
        self.e = e
        self.moved = moved
        self.lanes = lanes
        gate_bytes, self.inputs, self.products, self.second, self.state, self.cell, self.out = arguments
        self.gate_bytes = gate_bytes

    def gate(self, address: Any, number: int) -> Any:
        """Return what lies at an address for a gate."""
        b = self.e.builder
        place = b.add(address, b.mul(self.gate_bytes, self.e.number(number)))
        return self.e.load(VECTOR, b.add(place, self.moved))

    def total(self, number: int) -> Any:
        """Return the products of inputs and state for a gate."""
        return self.e.builder.fadd(self.gate(self.inputs, number), self.gate(self.products, number))

    def load(self, address: Any) -> Any:
        """Return units of a state."""
        return self.e.load(VECTOR, self.e.builder.add(address, self.moved))

    def store(self, value: Any, address: Any) -> None:
        """Set units of a state."""
        self.e.store(value, self.e.builder.add(address, self.moved))

    def finish(self, value: Any) -> None:
        """Set units of the state, and of the output."""
        self.store(value, self.state)
        store_lanes(self.e, value, self.e.builder.add(self.out, self.moved), self.lanes)


def _lstm(u: _Unit) -> None:
    b, e = u.e.builder, u.e
    opened, forgotten = sigmoid(e, u.total(0)), sigmoid(e, u.total(2))
    proposed = tanh(e, u.total(3))
    cell = e.multiply_add(forgotten, u.load(u.cell), b.fmul(opened, proposed))
    u.store(cell, u.cell)
    u.finish(b.fmul(sigmoid(e, u.total(1)), tanh(e, cell)))


def _mixed(u: _Unit, proposed: Any) -> None:
    """Store the proposed state and the old one, mixed by the update gate."""
    update, old = sigmoid(u.e, u.total(0)), u.load(u.state)
    u.finish(u.e.multiply_add(update, u.e.builder.fsub(old, proposed), proposed))


def _gru_reset(u: _Unit) -> None:
    u.store(u.e.builder.fmul(sigmoid(u.e, u.total(1)), u.load(u.state)), u.cell)


def _gru(u: _Unit) -> None:
    _mixed(u, tanh(u.e, u.e.builder.fadd(u.gate(u.inputs, 2), u.load(u.second))))


def _gru_resets_product(u: _Unit) -> None:
    reset = sigmoid(u.e, u.total(1))
    _mixed(u, tanh(u.e, u.e.multiply_add(reset, u.gate(u.products, 2), u.gate(u.inputs, 2))))


def _rnn_tanh(u: _Unit) -> None:
    u.finish(tanh(u.e, u.total(0)))


def _rnn_relu(u: _Unit) -> None:
    u.finish(u.e.clamp(u.total(0), u.e.zeros(), constant_vector(float("inf"))))


_CELLS = {
    LSTM: _lstm,
    GRU: _gru,
    GRU_RESETS_PRODUCT: _gru_resets_product,
    RNN_TANH: _rnn_tanh,
    RNN_RELU: _rnn_relu,
    GRU_RESET: _gru_reset,
}


def _emit_units(number: int) -> Any:
    """Return the writer of a cell for one vector of the batch.

    The arguments: units, inputs' products, state's products, second products, state, cell, out.
    """

    def emit(e: Emitter, *arguments: Any) -> None:
        units, *addresses = arguments
        b = e.builder
        gate_bytes = b.shl(units, e.number(2))
        with e.loop(b.udiv(b.add(units, e.number(LANES - 1)), e.number(LANES))) as i:
            lanes = first_lanes(e, less(e, units, b.shl(i, e.number(4))))
            _CELLS[number](_Unit(e, b.shl(i, e.number(6)), lanes, (gate_bytes, *addresses)))

    return emit


_compute_units = kernel_intrinsic(one_of({number: _emit_units(number) for number in _CELLS}), 8)
_BYTES = U64(8 * DIRECTION_PLACES)
_SECOND = U64(8 * 24)
_FIRST = U64(8 * FIRST_DIRECTION)


@helper
def _compute_batch(cell, block, part, inputs, out):  # type: ignore[no-untyped-def]
    """Compute the gates of all vectors of the batch."""
    units = load_parameter(block, 5)
    vector = U0
    while vector < load_parameter(block, 4):
        state_moved = vector * load_parameter(part, 56)
        product_moved = vector * load_parameter(part, 59)
        _compute_units(
            cell, units, inputs + vector * load_parameter(part, 51),
            load_parameter(part, 58) + product_moved, load_parameter(part, 60) + product_moved,
            load_parameter(part, 55) + state_moved, load_parameter(part, 57) + state_moved,
            out + vector * load_parameter(part, 54),
        )  # fmt: skip
        vector += U1
    return U0


@helper
def run_recurrent(block):  # type: ignore[no-untyped-def]
    """Run directions of a recurrent layer; the block vouches for every area."""
    cell = load_parameter(block, 2)
    entry = load_parameter(block, 6)
    direction = load_parameter(block, 0)
    while direction < load_parameter(block, 1):
        part = block + _FIRST + direction * _BYTES
        inputs = load_parameter(part, 49)
        out = load_parameter(part, 52)
        step = U0
        while step < load_parameter(block, 3):
            status = _run(entry, load_parameter(part, 48), part)
            if cell == U64(GRU) and status == np.int64(0):
                _compute_batch(U64(GRU_RESET), block, part, inputs, out)
                status = _run(entry, load_parameter(part, 61), part + _SECOND)
            if status != np.int64(0):
                return np.int64(-4)
            _compute_batch(cell, block, part, inputs, out)
            inputs += load_parameter(part, 50)
            out += load_parameter(part, 53)
            step += U1
        direction += U1
    return np.int64(0)
