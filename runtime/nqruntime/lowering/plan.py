"""The steps of a segment for inputs of known shapes, and where its values lie in one area of memory.

While steps are made, areas have virtual addresses: area k begins at (k + 1) * 2**48, beyond any real address
of a process. Blocks may hold sums of such an address and an offset; a context replaces them by real ones.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nqformat.errors import LimitExceededError
from nqruntime.kernels.blocks import COPY_ROWS, ELEMENTWISE, GRAINS, SKIP_COLUMNS
from nqruntime.packing.areas import LINE, round_up
from nqruntime.packing.copy_steps import ChannelsCall, copy_from_planes, copy_to_planes
from nqruntime.packing.plane_layout import Area, PlaneLayout
from nqruntime.packing.sequences import Formula, Operand, elementwise
from nqruntime.packing.skipping import SKIPS_PLACE

from .layouts import ROW_FLOATS, Layout, Planes, Rows, image_size, packed_rows, rows
from .plane_choice import PlaneChoice
from .strides import Strides, joined_axes, packed_strides

_VIRTUAL_BITS = 48
_OFFSET_MASK = (1 << _VIRTUAL_BITS) - 1
_LINE_FLOATS = LINE // 4
_COPIED_FLOATS = 1 << 15
_DIRECT_FLOATS = 1 << 13


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
        What it does.
    node : int
        Place in the graph of the node it is done for.
    """

    kernel: int
    block: np.ndarray
    label: str
    node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A value in an area."""

    layout: Layout | Strides
    address: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRows(Placed):
    """A value as vectors."""

    layout: Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedPlanes(Placed):
    """A value as planes."""

    layout: Planes

    def area(self, first_channel: int = 0) -> Area:
        """Return the planes as kernels take them."""
        return self.layout.area(self.address, first_channel)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedStrides(Placed):
    """A value whose elements lie at fixed distances along each axis."""

    layout: Strides


def _placed(layout: Layout, address: int) -> Placed:
    if isinstance(layout, Rows):
        return PlacedRows(layout=layout, address=address)
    return PlacedPlanes(layout=layout, address=address)


class PlanBuilder:
    """Collects the steps and areas of a plan.

    Attributes
    ----------
    steps : list of Step
    sizes : list of int
        Floats of each area; 0 for an input, which lies where the caller has it.
    planes_of : PlaneChoice
    n_threads : int
        Most threads that share a run.
    most_bytes : int
        Size from which an area is refused: LimitExceededError.
    node : int
        Place in the graph of the node whose steps are appended.
    last : frozenset of str
        Outputs that no operation reads: they are computed where the caller gets them, if they can be.
    """

    def __init__(self, planes_of: PlaneChoice, n_threads: int = 1, most_bytes: int = sys.maxsize) -> None:
        self.steps: list[Step] = []
        self.sizes: list[int] = []
        self.planes_of = planes_of
        self.n_threads = n_threads
        self.node = -1
        self.last: frozenset[str] = frozenset()
        self._private: dict[int, int] = {}
        self._most_bytes = most_bytes
        self._values: dict[str, Placed] = {}
        self._packed: dict[str, PlacedRows] = {}
        self._planes: dict[str, PlacedPlanes] = {}
        self._kept: list[object] = []

    def _new_area(self, n_floats: int) -> int:
        if 4 * n_floats > self._most_bytes:
            raise LimitExceededError(
                f"node {self.node} needs an array of {4 * n_floats} bytes, limit {self._most_bytes}",
                section="GRAPH",
            )
        self.sizes.append(n_floats)
        return len(self.sizes) << _VIRTUAL_BITS

    def add_input(self, name: str, shape: tuple[int, ...]) -> None:
        """Place a value that the caller gives, in C order: copied if small, else where the caller has it."""
        layout = packed_rows(shape)
        size = layout.size if layout.size <= _COPIED_FLOATS else 0
        self._values[name] = _placed(layout, self._new_area(size))

    def scratch(self, n_floats: int) -> int:
        """Return the address of memory for a few steps."""
        return self._new_area(n_floats)

    def private(self, n_floats: int) -> int:
        """Return the address of memory for one step that each thread has for itself."""
        each = round_up(n_floats, _LINE_FLOATS)
        self._private[len(self.sizes)] = each
        return self._new_area(each * self.n_threads)

    def is_direct(self, name: str, shape: tuple[int, ...]) -> bool:
        """Whether a product goes where the caller gets it: its kernels write whole blocks of rows."""
        large = math.prod(shape) > _DIRECT_FLOATS
        return large and name in self.last and shape[-1] % ROW_FLOATS == 0

    def product_rows(self, name: str, shape: tuple[int, ...]) -> Rows:
        """Return the layout of what a product gives."""
        return packed_rows(shape) if self.is_direct(name, shape) else rows(shape)

    def define_rows(self, name: str, layout: Rows, *, direct: bool = False) -> PlacedRows:
        """Make room for a value as vectors, or let it lie where the caller gets it."""
        placed = PlacedRows(layout=layout, address=self._new_area(0 if direct else layout.size))
        self._values[name] = placed
        return placed

    def define_planes(self, name: str) -> PlacedPlanes:
        """Make room for a value as planes."""
        layout = self.planes_of.layout(name)
        direct = name in self.last and layout.plane.is_packed
        placed = PlacedPlanes(layout=layout, address=self._new_area(0 if direct else layout.size))
        self._values[name] = placed
        return placed

    def alias(self, name: str, address: int, layout: Rows) -> None:
        """Let a value lie where another does."""
        self._values[name] = PlacedRows(layout=layout, address=address)

    def alias_strides(self, name: str, address: int, layout: Strides) -> None:
        """Let a value lie within another."""
        as_rows = layout.rows()
        if as_rows is not None:
            self.alias(name, address, as_rows)
        else:
            self._values[name] = PlacedStrides(layout=layout, address=address)

    def strides(self, name: str) -> PlacedStrides:
        """Return where the elements of a value lie; a copy if they are planes."""
        placed = self._values[name]
        if isinstance(placed, PlacedPlanes):
            placed = self.packed(name)
        if isinstance(placed, PlacedStrides):
            return placed
        assert isinstance(placed, PlacedRows)
        return PlacedStrides(layout=Strides.of(placed.layout), address=placed.address)

    def is_planes(self, name: str) -> bool:
        """Whether a value was computed as planes."""
        return isinstance(self._values[name], PlacedPlanes)

    def rows(self, name: str) -> PlacedRows:
        """Return where a value lies as vectors along its last axis."""
        placed = self._values[name]
        return placed if isinstance(placed, PlacedRows) else self.packed(name)

    def compute(
        self,
        shape: Sequence[int],
        first: PlacedStrides,
        second: PlacedStrides | None,
        out: PlacedStrides,
        *,
        formula: Formula,
        label: str,
    ) -> None:
        """Append a computation element by element, of values that broadcast to `shape`."""
        operands = [first, out] if second is None else [first, out, second]
        found = joined_axes(shape, *[value.layout.expanded(shape).steps for value in operands], n_axes=4)
        if found is None:
            raise UnplannableError
        sizes, steps = found
        if sizes[-1] == 1:
            steps = [[*each[:-1], 1] for each in steps]
        placed = [Operand(address=v.address, steps=s) for v, s in zip(operands, steps, strict=True)]
        other = placed[2] if second is not None else None
        if placed[1].steps[-1] != 1 or (other is not None and other.steps[-1] not in (0, 1)):
            raise UnplannableError
        self.step(ELEMENTWISE, elementwise(sizes, placed[0], other, placed[1], formula), label)

    def packed(self, name: str) -> PlacedRows:
        """Return where a value lies in C order, without gaps; a copy if it does not yet."""
        placed = self._values[name]
        if isinstance(placed, PlacedRows) and placed.layout.is_packed:
            return placed
        if name not in self._packed:
            layout = packed_rows(placed.layout.shape)
            copy = PlacedRows(layout=layout, address=self._new_area(layout.size))
            self._copy_out(placed, copy.address)
            self._packed[name] = copy
        return self._packed[name]

    def readable_beyond(self, name: str) -> PlacedRows:
        """Return where a value lies in C order, with memory after it that kernels may read."""
        placed = self.packed(name)
        if self.sizes[_area_of(placed)]:
            return placed
        copy = PlacedRows(layout=placed.layout, address=self._new_area(placed.layout.size))
        self._copy_out(placed, copy.address)
        return copy

    def _copy_out(self, placed: Placed, target: int) -> None:
        if isinstance(placed, PlacedPlanes):
            layout = placed.layout
            height, width = image_size(layout.shape)
            call = ChannelsCall(
                first=0,
                last=layout.n_channels,
                n_images=layout.n_images,
                source=placed.area(),
                out=_array_area(target, height * width, layout.n_channels),
            )
            self.step(COPY_ROWS, copy_from_planes(call, layout=layout.plane), "copy from planes")
            return
        if isinstance(placed, PlacedStrides):
            out = PlacedStrides(layout=packed_strides(placed.layout.shape), address=target)
            shape = placed.layout.shape
            self.compute(shape, placed, None, out, formula=Formula(), label="copy in another order")
            return
        assert isinstance(placed, PlacedRows)
        layout_of_rows = placed.layout
        n, width = layout_of_rows.n_vectors, layout_of_rows.n_features
        source = Area(address=placed.address, channel_bytes=4 * layout_of_rows.pitch, image_bytes=0)
        call = ChannelsCall(first=0, last=n, n_images=1, source=source, out=_array_area(target, width, n))
        flat = PlaneLayout(height=1, width=width)
        self.step(COPY_ROWS, copy_from_planes(call, layout=flat), "copy of rows")

    def planes(self, name: str, *, inside: bool = False) -> PlacedPlanes:
        """Return where a value lies as planes; a copy if it does not yet.

        Parameters
        ----------
        name : str
        inside : bool
            Nothing beyond the elements is read, so that an array in C order may serve.
        """
        placed = self._values[name]
        if isinstance(placed, PlacedPlanes):
            return placed
        if inside and (wanted := self.planes_of.layout(name)).plane.is_packed:
            return PlacedPlanes(layout=wanted, address=self.packed(name).address)
        if name not in self._planes:
            source = self.packed(name)
            layout = self.planes_of.layout(name)
            height, width = image_size(layout.shape)
            copy = PlacedPlanes(layout=layout, address=self._new_area(layout.size))
            call = ChannelsCall(
                first=0,
                last=layout.n_channels,
                n_images=layout.n_images,
                source=_array_area(source.address, height * width, layout.n_channels),
                out=copy.area(),
            )
            block = copy_to_planes(call, source_pitch=width, layout=layout.plane)
            self.step(COPY_ROWS, block, "copy to planes")
            self._planes[name] = copy
        return self._planes[name]

    def keep(self, *arrays: object) -> None:
        """Keep memory alive whose address is in a block."""
        self._kept.extend(arrays)

    def step(self, kernel: int, block: np.ndarray, label: str) -> None:
        """Append a step."""
        self.steps.append(Step(kernel=kernel, block=block, label=label, node=self.node))

    def _output(self, name: str) -> PlacedRows:
        """Return where an output lies as vectors; others are copied to where the caller wants them."""
        value = self._values[name]
        inside = self.sizes[_area_of(value)] > 0
        if (isinstance(value, PlacedRows) and inside) or name in self._packed:
            return self.rows(name)
        if self.sizes[_area_of(value)] == 0:
            return PlacedRows(layout=packed_rows(value.layout.shape), address=value.address)
        copy = PlacedRows(layout=packed_rows(value.layout.shape), address=self._new_area(0))
        self._copy_out(value, copy.address)
        return copy

    def finish(self, inputs: Sequence[str], outputs: Sequence[str]) -> Plan:
        """Return the plan."""
        given = tuple(self.rows(name) for name in inputs)
        placed = tuple(self._output(name) for name in outputs)
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
            n_threads=self.n_threads,
            private=dict(self._private),
        )


def _array_area(address: int, channel_floats: int, n_channels: int) -> Area:
    """Return an array of images in C order as kernels take it."""
    return Area(
        address=address, channel_bytes=4 * channel_floats, image_bytes=4 * channel_floats * n_channels
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
    inputs, outputs : tuple of PlacedRows
    kept : tuple
        Memory whose addresses are in the blocks.
    n_threads : int
        Most threads that share a run.
    private : dict of int to int
        Floats of each thread's share of an area of which each has one.
    """

    steps: tuple[Step, ...]
    words: np.ndarray
    starts: np.ndarray
    areas: np.ndarray
    offsets: np.ndarray
    arena_floats: int
    sizes: tuple[int, ...]
    inputs: tuple[PlacedRows, ...]
    outputs: tuple[PlacedRows, ...]
    kept: tuple[object, ...]
    n_threads: int
    private: dict[int, int]

    def thread_words(self, arena_address: int, thread: int) -> np.ndarray:
        """Return the words for one of the threads, each of which has its share of every step."""
        words = self.placed_words(arena_address)
        for area, floats in self.private.items():
            words[self.areas == area] += 4 * thread * floats
        for step, start in zip(self.steps, self.starts[:-1], strict=True):
            grain = GRAINS.get(step.kernel, 1)
            first, last = (int(word) for word in words[start : start + 2])
            grains = -(-(last - first) // grain)
            bounds = [first + grain * (grains * t // self.n_threads) for t in (thread, thread + 1)]
            words[start], words[start + 1] = min(bounds[0], last), min(bounds[1], last)
            if step.kernel == SKIP_COLUMNS:  # the meeting after it, too
                words[start + SKIPS_PLACE] *= 2
        return words

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
