"""Inputs and outputs of a session: their description, and the check of what a caller feeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from nqformat.errors import UnsupportedFeatureError

from .element_types import BFLOAT16, STRING, ElementType, element_type, matches
from .graph import Graph, GraphValue

_MOST_SEEN = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueDescription:
    """An input or output, described as ONNX Runtime does.

    Attributes
    ----------
    name : str
    shape : list of (int, str or None), or None
        A size, a symbol or None for each dimension; None if even the rank is unknown.
    type : str
        Such as ``"tensor(float)"``.
    """

    name: str
    shape: list[int | str | None] | None
    type: str

    def __str__(self) -> str:
        if self.shape is None:
            return f"{self.name!r}: {self.type}"
        sizes = ", ".join("?" if size is None else str(size) for size in self.shape)
        return f"{self.name!r}: {self.type} [{sizes}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputCheck:
    """One input with what is needed to check a feed for it.

    Attributes
    ----------
    description : ValueDescription
    element : ElementType or None
    required : bool
    native : dtype or None
        Element type of arrays that are taken as they are.
    sizes : tuple of (int, int)
        Axes with a fixed size, and these sizes.
    seen : set of tuple of int
        Some shapes that were right.
    """

    description: ValueDescription
    element: ElementType | None
    required: bool
    native: np.dtype[Any] | None
    sizes: tuple[tuple[int, int], ...]
    seen: set[tuple[int, ...]] = field(default_factory=set, compare=False)

    def takes(self, array: object) -> bool:
        """Whether a feed is right as it is; False may also mean that it takes a closer look."""
        if type(array) is not np.ndarray or array.dtype is not self.native:
            return False
        shape = array.shape
        if shape in self.seen:
            return True
        declared = self.description.shape
        if declared is not None and (
            len(shape) != len(declared) or any(shape[axis] != size for axis, size in self.sizes)
        ):
            return False
        if len(self.seen) < _MOST_SEEN:
            self.seen.add(shape)
        return True


def describe(value: GraphValue) -> ValueDescription:
    """Describe a graph input or output; UnsupportedFeatureError if it is no tensor."""
    if not value.is_tensor:
        raise UnsupportedFeatureError(f"graph input or output {value.name!r} is not a tensor")
    element = element_type(value.element_number)
    label = element.label if element else f"onnx type {value.element_number}" if value.element_number else "?"
    return ValueDescription(
        name=value.name,
        shape=None if value.shape is None else list(value.shape),
        type=f"tensor({label})",
    )


def input_checks(graph: Graph) -> dict[str, InputCheck]:
    """Return the inputs by name; those with an initializer may be left out of the feeds."""
    return {
        value.name: InputCheck(
            description=describe(value),
            element=element_type(value.element_number),
            required=value.name not in graph.initializers,
            native=_native_dtype(value.element_number),
            sizes=tuple((axis, size) for axis, size in enumerate(value.shape or ()) if isinstance(size, int)),
        )
        for value in graph.inputs
    }


def _native_dtype(element_number: int) -> np.dtype[Any] | None:
    element = element_type(element_number)
    if element is None or element.dtype is None or element.number in (STRING, BFLOAT16):
        return None
    return np.dtype(element.numpy_name)


def check_feeds(feeds: Mapping[str, np.ndarray], checks: Mapping[str, InputCheck]) -> dict[str, np.ndarray]:
    """Check names, element types and shapes of the arrays that a caller feeds.

    Returns
    -------
    dict of str to ndarray
        In native byte order.

    Raises
    ------
    TypeError
        If `feeds` is no mapping, or a value is no array of the declared element type.
    ValueError
        If a name is unknown or missing, or a shape differs from the declared one.
    """
    if not isinstance(feeds, Mapping):
        raise TypeError(f"feeds must be a mapping of input names to arrays, not {type(feeds).__name__}")
    if len(feeds) == len(checks):
        for name, array in feeds.items():
            check = checks.get(name)
            if check is None or not check.takes(array):
                break
        else:
            return dict(feeds)
    for name in feeds:
        if name not in checks:
            raise ValueError(f"the model has no input named {name!r}; it takes {_takes(checks)}")
    missing = [name for name, check in checks.items() if check.required and name not in feeds]
    if missing:
        raise ValueError(
            f"input {', '.join(map(repr, missing))} is missing; the model takes {_takes(checks)}"
        )
    return {name: _checked_array(array, checks[name]) for name, array in feeds.items()}


def _takes(checks: Mapping[str, InputCheck]) -> str:
    return "; ".join(str(check.description) for check in checks.values()) or "no inputs"


def _checked_array(array: object, check: InputCheck) -> np.ndarray:
    declared = check.description.shape
    expected = str(check.description)
    if not isinstance(array, np.ndarray | np.generic):
        raise TypeError(f"input {expected} needs a NumPy array, got {type(array).__name__}")
    array = np.asarray(array)
    if check.element is not None and not matches(array, check.element):
        wanted = "strings" if check.element.number == STRING else f"dtype {check.element.numpy_name}"
        raise TypeError(f"input {expected} needs {wanted}, got {array.dtype}")
    if declared is not None and not _fits(array.shape, declared):
        raise ValueError(f"input {expected} does not take shape {list(array.shape)}")
    if check.element is not None and check.element.number not in (STRING, BFLOAT16):
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
    return array


def _fits(actual: Sequence[int], declared: Sequence[int | str | None]) -> bool:
    if len(actual) != len(declared):
        return False
    for size, wanted in zip(actual, declared, strict=True):
        if size != wanted and isinstance(wanted, int):
            return False
    return True


def check_output_names(output_names: Sequence[str] | None, available: Sequence[str]) -> tuple[str, ...]:
    """Return the outputs to compute: all if `output_names` is None or empty, as in ONNX Runtime.

    Raises
    ------
    TypeError
        If a single string is given.
    ValueError
        If a name is unknown.
    """
    if isinstance(output_names, str):
        raise TypeError(f"output names must be a list of names, got the string {output_names!r}")
    wanted = tuple(output_names or available)
    for name in wanted:
        if name not in available:
            raise ValueError(
                f"the model has no output named {name!r}; it has {', '.join(map(repr, available))}"
            )
    return wanted
