"""Recurrent nodes as operations of a segment."""

from __future__ import annotations

import math

import numpy as np

from nqruntime.constant_parts import PartsConstant
from nqruntime.constants import Constant
from nqruntime.kernels.blocks import GRU, GRU_RESETS_PRODUCT, LSTM, RNN_RELU, RNN_TANH
from nqruntime.operators import NodeContext
from nqruntime.symbols import MatrixWeights, read_matrix

from .collected import Collected
from .product import Product
from .recurrent import GATES, Direction, LastState, Recurrent, StateProduct

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
_LENGTHS, _STATE, _CELL, _PEEPHOLES = 4, 5, 6, 7


def read_recurrent(reader: Collected, context: NodeContext, index: int) -> bool:
    """Take an LSTM, GRU or RNN with constant weights and its usual functions."""
    node = context.node
    cell = _cell(context)
    weights, states = context.constant(1), context.constant(2)
    reverse = _DIRECTIONS.get(context.text("direction", "forward"))
    if cell is None or weights is None or states is None or reverse is None:
        return False
    if len(weights.shape) != 3 or len(states.shape) != 3 or 0 in weights.shape or 0 in states.shape:
        return False
    units = states.shape[2]
    n_rows = GATES[cell] * units
    if weights.shape[:2] != (len(reverse), n_rows) or states.shape[:2] != (len(reverse), n_rows):
        return False
    biases = _biases(context, (len(reverse), 2 * n_rows))
    initial = [_initial(reader, context, place) for place in (_STATE, _CELL)]
    if context.integer("hidden_size", units) != units or biases is None or False in [i[0] for i in initial]:
        return False
    if not reader.is_float(node.inputs[0]) or context.integer("layout", 0) not in (0, 1):
        return False
    name = node.outputs[0] or f"states of node {index}"
    found = Recurrent(
        inputs=[node.inputs[0], *(state for _, state in initial if isinstance(state, str))],
        output=name,
        nodes=[index],
        cell=cell,
        units=units,
        directions=[],
        chooser=reader.chooser,
        initial=[state for _, state in initial],
        batch_first=bool(context.integer("layout", 0)),
    )
    found.inputs = [i for i in found.inputs if not reader.is_known(i)]
    for number, is_reverse in enumerate(reverse):
        made = _direction(found, (weights, states), biases[number], number, is_reverse)
        if made is None:
            return False
        found.directions.append(made)
    for constant, place in ((weights, 1), (states, 2)):
        reader.weight_shapes[node.inputs[place]] = constant.shape
    reader.operations.append(found)
    for number, output in enumerate(node.outputs[1:]):
        if output:
            reader.operations.append(
                LastState(inputs=[], output=output, nodes=[index], layer=found, number=number)
            )
    return True


def _cell(context: NodeContext) -> int | None:
    """Return what the node computes in each step; None if no kernel does."""
    node = context.node
    if any(context.has_input(place) for place in (_LENGTHS, _PEEPHOLES)):
        return None
    if any(name in node.attributes for name in ("clip", "activation_alpha", "activation_beta")):
        return None
    names = [name.lower() for name in context.texts("activations") or ()]
    if node.op_type == "RNN":
        if set(names) <= {"tanh"}:
            return RNN_TANH
        return RNN_RELU if set(names) == {"relu"} else None
    usual = ["sigmoid", "tanh", "tanh"] if node.op_type == "LSTM" else ["sigmoid", "tanh"]
    if names not in ([], usual, usual * 2) or context.integer("input_forget", 0):
        return None
    if node.op_type == "LSTM":
        return LSTM
    return GRU_RESETS_PRODUCT if context.integer("linear_before_reset", 0) else GRU


def _biases(context: NodeContext, shape: tuple[int, int]) -> np.ndarray | None:
    """Return the biases of each direction, zeros without any; None if they are no such constant."""
    if not context.has_input(3):
        return np.zeros(shape, dtype=np.float32)
    constant = context.constant(3)
    if constant is None or constant.shape != shape:
        return None
    array = constant.array()
    return array if array.dtype == np.float32 else None


def _initial(reader: Collected, context: NodeContext, place: int) -> tuple[bool, str | np.ndarray | None]:
    """Return whether a first state can be taken, and its name or value, None for zeros."""
    if not context.has_input(place):
        return True, None
    name, constant = context.node.inputs[place], context.constant(place)
    if constant is None:
        return reader.is_known(name) or reader.is_float(name), name
    array = constant.array()
    return array.dtype == np.float32 and array.ndim == 3, array


def _direction(
    layer: Recurrent, constants: tuple[Constant, Constant], biases: np.ndarray, number: int, is_reverse: bool
) -> Direction | None:
    """Return one direction's weights; None if they are not float32."""
    units, n_rows = layer.units, GATES[layer.cell] * layer.units
    of_inputs = biases[:n_rows].copy()
    of_states = biases[n_rows:]
    kept = np.zeros(n_rows, dtype=np.float32)
    if layer.cell == GRU_RESETS_PRODUCT:
        kept[2 * units :] = of_states[2 * units :]
    of_inputs += of_states - kept
    weights = _rows(constants[0], number * n_rows, n_rows)
    parts = [(0, n_rows)] if layer.cell != GRU else [(0, 2 * units), (2 * units, units)]
    states = [
        (_rows(constants[1], number * n_rows + start, n), kept[start : start + n]) for start, n in parts
    ]
    if weights is None or any(matrix is None for matrix, _ in states):
        return None
    inputs = Product(
        inputs=layer.inputs[:1],
        output=f"{layer.output}: inputs of direction {number}",
        nodes=layer.nodes,
        weights=weights,
        chooser=layer.chooser,
        bias=of_inputs,
    )
    products = [StateProduct(weights=matrix, bias=bias if bias.any() else None) for matrix, bias in states]
    return Direction(is_reverse=is_reverse, inputs=inputs, states=products)


def _rows(constant: Constant, start: int, n_rows: int) -> MatrixWeights | None:
    """Return rows of all directions' matrices, one after the other, as a matrix."""
    columns = constant.shape[2]
    part = PartsConstant.of(constant).part(start * columns, (start + n_rows) * columns, (n_rows, columns))
    if math.prod(part.shape) != n_rows * columns:
        return None
    weights = read_matrix(part, (n_rows, columns)).detached()
    return weights if weights.floats is None or weights.floats.dtype == np.float32 else None
