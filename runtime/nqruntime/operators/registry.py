"""The table of operators that the native engine has, by name and version.

An operator is a function of a :class:`NodeContext` that returns what to call for each run: attributes are
read and refused once, when the session is made. Arrays come in the order of the node's inputs, None for one
that is left out; the result is one array or a tuple of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nqformat.errors import CorruptError, LimitExceededError, UnsupportedFeatureError
from nqformat.kernels.objects import KernelLibrary
from nqformat.limits import Limits
from nqruntime.constants import Constant
from nqruntime.graph import AttributeKind, AttributeValue, Node
from nqruntime.inline_tensor import InlineTensor

MAX_OPSET = 26

Run = Callable[..., np.ndarray | tuple[np.ndarray, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What to call for a node, for operators that say more than that.

    Attributes
    ----------
    run : callable
    kernel : str
    weight_bytes : int
    taken : tuple of int
        Inputs that are constants built into `run`, which gets None for them.
    """

    run: Run
    kernel: str
    weight_bytes: int = 0
    taken: tuple[int, ...] = ()


class NodeContext:
    """One node as an operator sees it while it is prepared."""

    def __init__(
        self,
        node: Node,
        *,
        label: str,
        opset: int,
        constants: dict[str, Constant],
        library: KernelLibrary | None,
        limits: Limits,
    ) -> None:
        self.node = node
        self.label = label
        self.opset = opset
        self.library = library
        self._constants = constants
        self._limits = limits

    def has_input(self, index: int) -> bool:
        """Whether the input is given."""
        return index < len(self.node.inputs) and bool(self.node.inputs[index])

    def constant(self, index: int) -> Constant | None:
        """Return the input's value if it is known before the run."""
        return self._constants.get(self.node.inputs[index]) if self.has_input(index) else None

    def refuse(self, detail: str) -> UnsupportedFeatureError:
        """Return the error that says that this node is beyond the native engine."""
        return UnsupportedFeatureError(f"the native engine lacks {detail} ({self.label})")

    def expect_outputs(self, n_outputs: int, what: str) -> None:
        """Refuse the node if it asks for more than its first `n_outputs` outputs."""
        if any(self.node.outputs[n_outputs:]):
            raise self.refuse(what)

    def check_size(self, n_elements: int, itemsize: int) -> None:
        """Refuse to allocate more than the limits allow; LimitExceededError."""
        if n_elements * itemsize > self._limits.materialised_bytes:
            raise LimitExceededError(
                f"{self.label} needs an array of {n_elements * itemsize} bytes, "
                f"limit {self._limits.materialised_bytes}",
                section="GRAPH",
            )

    def integer(self, name: str, default: int) -> int:
        """Return an INT attribute."""
        value = self._value(name, AttributeKind.INT)
        return value if isinstance(value, int) else default

    def number(self, name: str, default: float) -> float:
        """Return a FLOAT attribute."""
        value = self._value(name, AttributeKind.FLOAT)
        return float(value) if isinstance(value, float | int) else default

    def text(self, name: str, default: str) -> str:
        """Return a STRING attribute."""
        value = self._value(name, AttributeKind.STRING)
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else default

    def texts(self, name: str) -> tuple[str, ...] | None:
        """Return a STRINGS attribute; None if it is absent."""
        value = self._value(name, AttributeKind.STRINGS)
        if not isinstance(value, tuple):
            return None
        return tuple(text.decode("utf-8", "replace") for text in value if isinstance(text, bytes))

    def integers(self, name: str) -> tuple[int, ...] | None:
        """Return an INTS attribute; None if it is absent."""
        value = self._value(name, AttributeKind.INTS)
        if not isinstance(value, tuple):
            return None
        return tuple(number for number in value if isinstance(number, int))

    def numbers(self, name: str) -> np.ndarray | None:
        """Return a FLOATS attribute; None if it is absent."""
        value = self._value(name, AttributeKind.FLOATS)
        return value if isinstance(value, np.ndarray) else None

    def tensor(self, name: str) -> InlineTensor | None:
        """Return a TENSOR attribute; None if it is absent."""
        value = self._value(name, AttributeKind.TENSOR)
        return value if isinstance(value, InlineTensor) else None

    def _value(self, name: str, kind: AttributeKind) -> AttributeValue:
        attribute = self.node.attributes.get(name)
        if attribute is None:
            return None
        if attribute.kind is not kind:
            raise CorruptError(
                f"attribute {name!r} of {self.label} is {attribute.kind.name}, not {kind.name}",
                section="GRAPH",
            )
        return attribute.value


Operator = Callable[[NodeContext], Run | Prepared]

_OPERATORS: dict[str, list[tuple[int, Operator]]] = {}


def operator(name: str, since: int = 1) -> Callable[[Operator], Operator]:
    """Register an operator for opsets from `since` on, up to the next version registered."""

    def register(prepare: Operator) -> Operator:
        _OPERATORS.setdefault(name, []).append((since, prepare))
        return prepare

    return register


def register_function(name: str, since: int, function: Run) -> None:
    """Register an operator without attributes, which is a plain function of its operands."""

    def prepare(context: NodeContext) -> Run:
        return function

    operator(name, since)(prepare)


def find_operator(name: str, opset: int) -> Operator | None:
    """Return the newest version of an operator that the opset has; None if there is none."""
    known = [entry for entry in _OPERATORS.get(name, ()) if entry[0] <= opset]
    return max(known, key=lambda entry: entry[0])[1] if known else None


def operator_names() -> tuple[str, ...]:
    """Return the names of all operators in the table."""
    return tuple(sorted(_OPERATORS))
