"""The steps of a segment for inputs of known shapes, and where its values lie in one area of memory.

While steps are made, areas have virtual addresses: area k begins at (k + 1) * 2**48, beyond any real address
of a process. Blocks may hold sums of such an address and an offset; a context replaces them by real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from nqruntime.packing.areas import LINE, round_up

from .layouts import Rows

_VIRTUAL_BITS = 48
_OFFSET_MASK = (1 << _VIRTUAL_BITS) - 1
_LINE_FLOATS = LINE // 4
_COPIED_FLOATS = 1 << 15


def _area_of(value: Placed) -> int:
    return (value.address >> _VIRTUAL_BITS) - 1


class UnplannableError(Exception):
    """Inputs of these shapes are beyond the kernels; never leaves the native engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A kernel with its parameters.

    Attributes
    ----------
    kernel : int
    block : ndarray of int64
        With virtual addresses.
    label : str
        Which operation it belongs to.
    """

    kernel: int
    block: np.ndarray
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A value in an area."""

    layout: Rows
    address: int


@dataclass(slots=True)
class PlanBuilder:
    """Collects the steps and areas of a plan.

    Attributes
    ----------
    steps : list of Step
    sizes : list of int
        Floats of each area; 0 for an input, which lies where the caller has it.
    """

    steps: list[Step] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    _values: dict[str, Placed] = field(default_factory=dict)
    _kept: list[object] = field(default_factory=list)

    def _new_area(self, n_floats: int) -> int:
        self.sizes.append(n_floats)
        return len(self.sizes) << _VIRTUAL_BITS

    def add_input(self, name: str, layout: Rows) -> None:
        """Place a value that the caller gives, in C order: copied if small, else where the caller has it."""
        size = layout.size if layout.size <= _COPIED_FLOATS else 0
        self._values[name] = Placed(layout=layout, address=self._new_area(size))

    def scratch(self, n_floats: int) -> int:
        """Return the address of memory for one step."""
        return self._new_area(n_floats)

    def define(self, name: str, layout: Rows) -> Placed:
        """Make room for a value."""
        placed = Placed(layout=layout, address=self._new_area(layout.size))
        self._values[name] = placed
        return placed

    def alias(self, name: str, address: int, layout: Rows) -> None:
        """Let a value lie where another does."""
        self._values[name] = Placed(layout=layout, address=address)

    def value(self, name: str) -> Placed:
        """Return where a value lies."""
        return self._values[name]

    def rows(self, name: str) -> Placed:
        """Return where a value lies as vectors along its last axis."""
        return self._values[name]

    def packed(self, name: str) -> Placed:
        """Return where a value lies in C order, without gaps."""
        placed = self._values[name]
        if placed.layout.pitch != placed.layout.n_features and placed.layout.n_vectors > 1:
            raise UnplannableError
        return placed

    def keep(self, *arrays: object) -> None:
        """Keep memory alive whose address is in a block."""
        self._kept.extend(arrays)

    def step(self, kernel: int, block: np.ndarray, label: str) -> None:
        """Append a step."""
        self.steps.append(Step(kernel=kernel, block=block, label=label))

    def finish(self, inputs: Sequence[str], outputs: Sequence[str]) -> Plan:
        """Return the plan."""
        given = tuple(self._values[name] for name in inputs)
        placed = tuple(self._values[name] for name in outputs)
        lengths = [step.block.size for step in self.steps]
        words = np.concatenate([step.block for step in self.steps])
        areas = (words >> _VIRTUAL_BITS) - 1
        areas[(areas < 0) | (areas >= len(self.sizes))] = -1
        owners = np.repeat(np.arange(len(lengths)), lengths)
        spans = np.full((len(self.sizes), 2), -1, dtype=np.int64)
        for area in range(len(self.sizes)):
            users = owners[areas == area]
            if users.size:
                spans[area] = users[0], users[-1]
        for value in given:
            spans[_area_of(value), 0] = 0
        for value in placed:
            spans[_area_of(value), 1] = len(lengths)
        offsets, total = place_areas(self.sizes, spans)
        return Plan(
            steps=tuple(self.steps),
            words=words,
            starts=np.concatenate([[0], np.cumsum(lengths)]),
            areas=areas,
            offsets=offsets,
            arena_floats=total,
            sizes=tuple(self.sizes),
            inputs=given,
            outputs=placed,
            kept=tuple(self._kept),
        )


def place_areas(sizes: Sequence[int], spans: np.ndarray) -> tuple[np.ndarray, int]:
    """Place areas so that none overlaps another that is in use at the same time.

    Parameters
    ----------
    sizes : sequence of int
        Floats of each area.
    spans : ndarray of int64, shape (n_areas, 2)
        First and last step that uses the area; -1 for one that no step uses.

    Returns
    -------
    offsets : ndarray of int64
        In floats, each at a cache line.
    total : int
    """
    offsets = np.zeros(len(sizes), dtype=np.int64)
    placed: list[int] = []
    total = 0
    for area in sorted(range(len(sizes)), key=lambda a: -sizes[a]):
        if sizes[area] == 0 or spans[area, 0] < 0:
            continue
        size = round_up(sizes[area], _LINE_FLOATS)
        others = [o for o in placed if spans[o, 0] <= spans[area, 1] and spans[area, 0] <= spans[o, 1]]
        start = 0
        for other in sorted(others, key=lambda o: int(offsets[o])):
            if offsets[other] >= start + size:
                break
            start = max(start, int(offsets[other]) + round_up(sizes[other], _LINE_FLOATS))
        offsets[area] = start
        placed.append(area)
        total = max(total, start + size)
    return offsets, total


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps for inputs of known shapes.

    Attributes
    ----------
    steps : tuple of Step
    words : ndarray of int64
        All blocks, one after the other.
    starts : ndarray of int64, shape (n_steps + 1,)
        Where each block begins.
    areas : ndarray of int64, shape of words
        Area of which a word is an address; -1 for other words.
    offsets : ndarray of int64
        Floats from the beginning of the arena to each area.
    arena_floats : int
    sizes : tuple of int
        Floats of each area; 0 for one that lies elsewhere.
    inputs, outputs : tuple of Placed
    kept : tuple
        Memory whose addresses are in the blocks.
    """

    steps: tuple[Step, ...]
    words: np.ndarray
    starts: np.ndarray
    areas: np.ndarray
    offsets: np.ndarray
    arena_floats: int
    sizes: tuple[int, ...]
    inputs: tuple[Placed, ...]
    outputs: tuple[Placed, ...]
    kept: tuple[object, ...]

    def placed_words(self, arena_address: int) -> np.ndarray:
        """Return the words with real addresses; those of areas that lie elsewhere become offsets."""
        words = self.words.copy()
        mine = self.areas >= 0
        words[mine] &= _OFFSET_MASK
        inside = mine & (np.array(self.sizes)[self.areas] > 0)
        words[inside] += arena_address + 4 * self.offsets[self.areas[inside]]
        return words

    def is_borrowed(self, value: Placed) -> bool:
        """Whether a value lies where the caller has it."""
        return self.sizes[_area_of(value)] == 0

    def words_of(self, value: Placed) -> np.ndarray:
        """Return the places of the words that are addresses in a value's area."""
        return np.flatnonzero(self.areas == _area_of(value))

    def arena_offset(self, value: Placed) -> int:
        """Floats from the beginning of the arena to a value."""
        return int(self.offsets[_area_of(value)]) + (value.address & _OFFSET_MASK) // 4
