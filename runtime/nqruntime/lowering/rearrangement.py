"""Copies of planes: parts of images, further channels, channels side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nqruntime.kernels.blocks import COPY_ROWS
from nqruntime.packing.copy_steps import ChannelsCall, copy_phase, copy_to_planes

from .layouts import image_size
from .operation import Operation, Shape
from .plan import PlacedPlanes, PlanBuilder, UnplannableError
from .plane_choice import PlaneChoice

_WHOLE = slice(None)


@dataclass(slots=True, kw_only=True)
class Crop(Operation):
    """Every n-th row and column of a range of an image, between channels of zeros.

    Attributes
    ----------
    ranges : dict of int to slice
        By axis of (images, channels, height, width), 2 or 3, with positive steps.
    before, after : int
        Channels of zeros.
    """

    ranges: dict[int, slice] = field(default_factory=dict)
    before: int = 0
    after: int = 0

    @property
    def label(self) -> str:
        """What computes it."""
        return "copy of parts of planes"

    def takes(self, ranges: dict[int, slice]) -> bool:
        """Whether ranges of further axes can join."""
        return not (self.before or self.after or set(ranges) & set(self.ranges))

    def _extents(self, given: Shape) -> list[range]:
        return [range(*self.ranges.get(axis, _WHOLE).indices(given[axis])) for axis in (2, 3)]

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the output."""
        given = shapes[self.inputs[0]]
        if len(given) != 4 or 0 in given:
            raise UnplannableError
        rows, columns = self._extents(given)
        if not rows or not columns:
            raise UnplannableError
        return (given[0], given[1] + self.before + self.after, len(rows), len(columns))

    def constrain(self, choice: PlaneChoice, shapes: dict[str, Shape]) -> None:
        """Need planes of any layout."""
        choice.add(self.inputs[0], shapes[self.inputs[0]])
        choice.compute(self.output, shapes[self.output])

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append a copy, and one of nothing for each range of channels of zeros."""
        source = plan.planes(self.inputs[0])
        out = plan.define_planes(self.output)
        rows, columns = self._extents(shapes[self.inputs[0]])
        n_channels = source.layout.n_channels
        parts = (
            (0, self.before, (0, 0)),
            (self.before, n_channels, (len(rows), len(columns))),
            (self.before + n_channels, self.after, (0, 0)),
        )
        for first, count, extent in parts:
            if not count:
                continue
            call = ChannelsCall(
                first=0,
                last=count,
                n_images=out.layout.n_images,
                source=source.area(),
                out=out.area(first),
            )
            block = copy_phase(
                call,
                source_pitch=source.layout.plane.pitch,
                first=(rows.start, columns.start),
                step=(rows.step, columns.step),
                extent=extent,
                layout=out.layout.plane,
            )
            plan.step(COPY_ROWS, block, self.label)


@dataclass(slots=True, kw_only=True)
class Concatenation(Operation):
    """Channels of several values, one value after the other."""

    @property
    def label(self) -> str:
        """What computes it."""
        return "copies of planes"

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the output."""
        given = [shapes[name] for name in self.inputs]
        first = given[0]
        if len(first) not in (3, 4) or any(0 in shape for shape in given):
            raise UnplannableError
        if any(shape[:1] + shape[2:] != first[:1] + first[2:] for shape in given):
            raise UnplannableError
        return (first[0], sum(shape[1] for shape in given), *first[2:])

    def constrain(self, choice: PlaneChoice, shapes: dict[str, Shape]) -> None:
        """Need planes of any layout."""
        for name in self.inputs:
            choice.add(name, shapes[name])
        choice.compute(self.output, shapes[self.output])

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append a copy for each value."""
        sources = [plan.planes(name) for name in self.inputs]
        out = plan.define_planes(self.output)
        for source, first in _first_channels(sources):
            call = ChannelsCall(
                first=0,
                last=source.layout.n_channels,
                n_images=out.layout.n_images,
                source=source.area(),
                out=out.area(first),
            )
            layout = out.layout.plane
            width = image_size(source.layout.shape)[1]
            pitch = source.layout.plane.pitch
            assert layout.width == width
            plan.step(COPY_ROWS, copy_to_planes(call, source_pitch=pitch, layout=layout), self.label)


def _first_channels(sources: list[PlacedPlanes]) -> Iterator[tuple[PlacedPlanes, int]]:
    first = 0
    for source in sources:
        yield source, first
        first += source.layout.n_channels
