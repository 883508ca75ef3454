"""Recurrent layers: LSTM, GRU and RNN, with inputs multiplied for all steps at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nqformat.errors import CorruptError
from nqruntime.constants import ArrayConstant, Constant
from nqruntime.matrices import CompactArray, StorageOrder, build_matrix

from .activations import (
    Activation,
    elu,
    hard_sigmoid,
    leaky_relu,
    relu,
    sigmoid,
    softplus,
    softsign,
    thresholded_relu,
)
from .registry import NodeContext, Prepared, Run, operator

_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


def _scaled_tanh(alpha: float, beta: float) -> Activation:
    return lambda x: x.dtype.type(alpha) * np.tanh(x.dtype.type(beta) * x)


_FIXED: dict[str, Activation] = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": relu,
    "softsign": softsign,
    "softplus": softplus,
}
# Functions of (alpha, beta), with the defaults of these.
_WITH_PARAMETERS: dict[str, tuple[Callable[[float, float], Activation], float, float]] = {
    "affine": (lambda a, b: lambda x: x.dtype.type(a) * x + x.dtype.type(b), 1.0, 0.0),
    "leakyrelu": (lambda a, _: leaky_relu(a), 0.01, 0.0),
    "thresholdedrelu": (lambda a, _: thresholded_relu(a), 1.0, 0.0),
    "scaledtanh": (_scaled_tanh, 1.0, 1.0),
    "hardsigmoid": (hard_sigmoid, 0.2, 0.5),
    "elu": (lambda a, _: elu(a), 1.0, 0.0),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """Attributes of a recurrent node.

    Attributes
    ----------
    reverse : tuple of bool
        Whether each direction runs from the end.
    activations : tuple of tuple of callable
        Those of each direction.
    hidden : int
    clip : float or None
        Bound on what goes into the activations.
    batch_first : bool
        ONNX's layout 1.
    """

    reverse: tuple[bool, ...]
    activations: tuple[tuple[Activation, ...], ...]
    hidden: int
    clip: float | None
    batch_first: bool

    def clipped(self, x: np.ndarray) -> np.ndarray:
        """Return `x` within the bound."""
        return x if self.clip is None else np.clip(x, -self.clip, self.clip)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Direction:
    """What one direction does with its state.

    Attributes
    ----------
    reverse : bool
        Whether it runs from the end.
    functions : tuple of callable
        Activations.
    recurrent : ndarray, shape (hidden, n_gates * hidden)
    bias : ndarray, shape (2 * n_gates * hidden,)
    peepholes : ndarray, shape (3 * hidden,), or None
    """

    reverse: bool
    functions: tuple[Activation, ...]
    recurrent: np.ndarray
    bias: np.ndarray
    peepholes: np.ndarray | None


class Cell(ABC):
    """One step of a recurrent layer."""

    n_gates: ClassVar[int]
    n_states: ClassVar[int]
    activations: ClassVar[tuple[str, ...]]

    @abstractmethod
    def bias(self, biases: np.ndarray, hidden: int) -> np.ndarray:
        """Return what is added to the inputs' products, from the biases of inputs and of states."""

    @abstractmethod
    def step(
        self, x: np.ndarray, state: tuple[np.ndarray, ...], direction: _Direction, rule: _Rule
    ) -> tuple[np.ndarray, ...]:
        """Return the next state, the output first, from the products `x` of the inputs."""


@dataclass(frozen=True, kw_only=True)
class LstmCell(Cell):
    """Gates in the order input, output, forget, cell; the state is (output, cell).

    Attributes
    ----------
    couples_gates : bool
        The forget gate is 1 minus the input gate.
    """

    couples_gates: bool
    n_gates = 4
    n_states = 2
    activations = ("Sigmoid", "Tanh", "Tanh")

    def bias(self, biases: np.ndarray, hidden: int) -> np.ndarray:
        """Return the sum of both biases."""
        total: np.ndarray = biases[: 4 * hidden] + biases[4 * hidden :]
        return total

    def step(
        self, x: np.ndarray, state: tuple[np.ndarray, ...], direction: _Direction, rule: _Rule
    ) -> tuple[np.ndarray, ...]:
        """Return the next output and cell."""
        output, cell = state
        gate, squash, last = direction.functions
        i, o, f, c = np.split(x + output @ direction.recurrent, 4, axis=1)
        peepholes = None if direction.peepholes is None else np.split(direction.peepholes, 3)
        if peepholes is not None:
            i, f = i + peepholes[0] * cell, f + peepholes[2] * cell
        opened = gate(rule.clipped(i))
        kept = 1 - opened if self.couples_gates else gate(rule.clipped(f))
        following = kept * cell + opened * squash(rule.clipped(c))
        if peepholes is not None:
            o = o + peepholes[1] * following
        return gate(rule.clipped(o)) * last(following), following


@dataclass(frozen=True, kw_only=True)
class GruCell(Cell):
    """Gates in the order update, reset, hidden; the state is (output,).

    Attributes
    ----------
    resets_product : bool
        The reset gate multiplies the product with the state, not the state (linear_before_reset).
    """

    resets_product: bool
    n_gates = 3
    n_states = 1
    activations = ("Sigmoid", "Tanh")

    def bias(self, biases: np.ndarray, hidden: int) -> np.ndarray:
        """Return the sum of both biases, without the state's for the hidden gate where it is reset."""
        total: np.ndarray = biases[: 3 * hidden] + biases[3 * hidden :]
        if self.resets_product:
            total[2 * hidden :] = biases[2 * hidden : 3 * hidden]
        return total

    def step(
        self, x: np.ndarray, state: tuple[np.ndarray, ...], direction: _Direction, rule: _Rule
    ) -> tuple[np.ndarray, ...]:
        """Return the next output."""
        (output,) = state
        gate, squash = direction.functions
        both = 2 * rule.hidden
        gates = gate(rule.clipped(x[:, :both] + output @ direction.recurrent[:, :both]))
        update, reset = np.split(gates, 2, axis=1)
        own = direction.recurrent[:, both:]
        if self.resets_product:
            hidden = reset * (output @ own + direction.bias[-rule.hidden :])
        else:
            hidden = (reset * output) @ own
        proposed = squash(rule.clipped(x[:, both:] + hidden))
        return ((1 - update) * proposed + update * output,)


class RnnCell(Cell):
    """One gate; the state is (output,)."""

    n_gates = 1
    n_states = 1
    activations = ("Tanh",)

    def bias(self, biases: np.ndarray, hidden: int) -> np.ndarray:
        """Return the sum of both biases."""
        total: np.ndarray = biases[:hidden] + biases[hidden:]
        return total

    def step(
        self, x: np.ndarray, state: tuple[np.ndarray, ...], direction: _Direction, rule: _Rule
    ) -> tuple[np.ndarray, ...]:
        """Return the next output."""
        return (direction.functions[0](rule.clipped(x + state[0] @ direction.recurrent)),)


@operator("LSTM", 7)
def lstm(context: NodeContext) -> Run | Prepared:
    """Long short-term memory."""
    return _prepare(context, LstmCell(couples_gates=bool(context.integer("input_forget", 0))))


@operator("GRU", 7)
def gru(context: NodeContext) -> Run | Prepared:
    """Gated recurrent unit."""
    return _prepare(context, GruCell(resets_product=bool(context.integer("linear_before_reset", 0))))


@operator("RNN", 7)
def rnn(context: NodeContext) -> Run | Prepared:
    """Recurrent layer of one gate."""
    return _prepare(context, RnnCell())


def _prepare(context: NodeContext, cell: Cell) -> Run | Prepared:
    weight, recurrent = context.constant(1), context.constant(2)
    _read_activations(context, cell, len(_read_directions(context)))
    if weight is None or recurrent is None:

        def run(x: np.ndarray, w: np.ndarray, r: np.ndarray, *others: np.ndarray | None) -> object:
            prepared = _prepare_weights(context, cell, ArrayConstant(w), ArrayConstant(r))
            return prepared.run(x, None, None, *others)

        return run  # type: ignore[return-value]
    return _prepare_weights(context, cell, weight, recurrent)


def _read_directions(context: NodeContext) -> tuple[bool, ...]:
    direction = context.text("direction", "forward")
    if direction not in _DIRECTIONS:
        raise CorruptError(f"{context.label} has the direction {direction!r}", section="GRAPH")
    return _DIRECTIONS[direction]


def _read_rule(context: NodeContext, cell: Cell, recurrent: tuple[int, ...]) -> _Rule:
    reverse = _read_directions(context)
    hidden = context.integer("hidden_size", recurrent[-1] if recurrent else 0)
    if recurrent != (len(reverse), cell.n_gates * hidden, hidden):
        raise CorruptError(
            f"{context.label} of {hidden} units has recurrent weights of shape {recurrent}", section="GRAPH"
        )
    return _Rule(
        reverse=reverse,
        activations=_read_activations(context, cell, len(reverse)),
        hidden=hidden,
        clip=context.number("clip", 0.0) if "clip" in context.node.attributes else None,
        batch_first=bool(context.integer("layout", 0)),
    )


def _read_activations(
    context: NodeContext, cell: Cell, n_directions: int
) -> tuple[tuple[Activation, ...], ...]:
    names = context.texts("activations") or cell.activations * n_directions
    width = len(cell.activations)
    if len(names) != width * n_directions:
        raise CorruptError(f"{context.label} has {len(names)} activations", section="GRAPH")
    alphas, betas = (list(_numbers(context, name)) for name in ("activation_alpha", "activation_beta"))
    found: list[Activation] = []
    for name in names:
        key = name.lower()
        if key in _FIXED:
            found.append(_FIXED[key])
        elif key in _WITH_PARAMETERS:
            make, alpha, beta = _WITH_PARAMETERS[key]
            found.append(make(alphas.pop(0) if alphas else alpha, betas.pop(0) if betas else beta))
        else:
            raise context.refuse(f"the activation {name}")
    return tuple(tuple(found[i : i + width]) for i in range(0, len(found), width))


def _numbers(context: NodeContext, name: str) -> list[float]:
    found = context.numbers(name)
    return [] if found is None else [float(number) for number in found]


def _prepare_weights(context: NodeContext, cell: Cell, weight: Constant, recurrent: Constant) -> Prepared:
    rule = _read_rule(context, cell, recurrent.shape)
    n_directions, width = len(rule.reverse), cell.n_gates * rule.hidden
    if len(weight.shape) != 3 or weight.shape[:2] != (n_directions, width):
        raise CorruptError(f"{context.label} has weights of shape {weight.shape}", section="GRAPH")
    n_inputs = weight.shape[2]
    matrix = build_matrix(weight, (n_directions * width, n_inputs), StorageOrder.ROWS, context.library)
    compact = CompactArray(recurrent)

    def run(
        x: np.ndarray,
        _: None,
        __: None,
        biases: np.ndarray | None = None,
        lengths: np.ndarray | None = None,
        *states: np.ndarray | None,
    ) -> tuple[np.ndarray, ...]:
        inputs = x.swapaxes(0, 1) if rule.batch_first else x
        n_steps, n_batch, size = inputs.shape
        if size != n_inputs:
            raise ValueError(f"weights for {n_inputs} inputs do not take an input of shape {x.shape}")
        context.check_size(n_steps * n_batch * n_directions * width, x.itemsize)
        products = matrix.multiply(inputs.reshape(-1, size).T).T
        products = products.reshape(n_steps, n_batch, n_directions, width)
        decoded = compact.decoded()
        if biases is None:
            biases = np.zeros((n_directions, 2 * width), dtype=x.dtype)
        peepholes = states[2] if len(states) > 2 else None
        initial = _initial_states(states, rule, n_batch, x.dtype, cell)
        outputs, finals = [], []
        for d in range(n_directions):
            direction = _Direction(
                reverse=rule.reverse[d],
                functions=rule.activations[d],
                recurrent=np.ascontiguousarray(decoded[d].T),
                bias=biases[d],
                peepholes=None if peepholes is None else peepholes[d],
            )
            own = products[:, :, d] + cell.bias(biases[d], rule.hidden)
            state = tuple(each[d] for each in initial)
            found, final = _run_direction(cell, rule, direction, own, state, lengths=lengths)
            outputs.append(found)
            finals.append(final)
        return _arranged(rule, outputs, finals)

    return Prepared(
        run=run,
        kernel=f"steps, {matrix.label}, {compact.label}",
        weight_bytes=matrix.weight_bytes + compact.weight_bytes,
        taken=(1, 2),
    )


def _initial_states(
    given: tuple[np.ndarray | None, ...], rule: _Rule, n_batch: int, dtype: np.dtype, cell: Cell
) -> list[np.ndarray]:
    """Return each state, shape (directions, batch, hidden); zeros where it is not given."""
    found = []
    for i in range(cell.n_states):
        state = given[i] if i < len(given) else None
        if state is None:
            state = np.zeros((len(rule.reverse), n_batch, rule.hidden), dtype=dtype)
        elif rule.batch_first:
            state = state.swapaxes(0, 1)
        found.append(state)
    return found


def _run_direction(
    cell: Cell,
    rule: _Rule,
    direction: _Direction,
    products: np.ndarray,
    state: tuple[np.ndarray, ...],
    *,
    lengths: np.ndarray | None,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return all outputs, shape (steps, batch, hidden), and the last state."""
    n_steps, n_batch = products.shape[:2]
    out = np.zeros((n_steps, n_batch, rule.hidden), dtype=products.dtype)
    steps = range(n_steps)[::-1] if direction.reverse else range(n_steps)
    for step in steps:
        following = cell.step(products[step], state, direction, rule)
        if lengths is None:
            state = following
            out[step] = state[0]
        else:  # sequences that have ended, or have not begun from the end, keep their state
            alive = (step < lengths)[:, None]
            state = tuple(np.where(alive, new, old) for new, old in zip(following, state, strict=True))
            out[step] = np.where(alive, state[0], 0)
    return out, state


def _arranged(
    rule: _Rule, outputs: list[np.ndarray], finals: list[tuple[np.ndarray, ...]]
) -> tuple[np.ndarray, ...]:
    """Return Y, Y_h and, for two states, Y_c in ONNX's order of axes."""
    every = np.stack(outputs, axis=1)
    last = [np.stack(own) for own in zip(*finals, strict=True)]
    if rule.batch_first:
        every = every.transpose(2, 0, 1, 3)
        last = [state.swapaxes(0, 1) for state in last]
    return (every, *last)
