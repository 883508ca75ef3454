"""Pooling of planes."""

from __future__ import annotations

from dataclasses import dataclass

from nqruntime.kernels.blocks import AVERAGE_CHANNELS, POOL_AVERAGE, POOL_LARGEST
from nqruntime.operators.windows import WindowRule, plan_windows
from nqruntime.packing.copy_steps import ChannelsCall, average_channels
from nqruntime.packing.plane_layout import Area
from nqruntime.packing.pooling import PoolWindow, pack_pool

from .layouts import packed_rows
from .operation import Operation, Shape
from .plan import PlanBuilder, UnplannableError
from .plane_choice import PlaneChoice

_MOST_REACH = 1 << 12


@dataclass(slots=True, kw_only=True)
class Pool(Operation):
    """The largest element, or the mean, of each window.

    Attributes
    ----------
    rule : WindowRule
        Of one or two spatial axes.
    average : bool
    counts_padding : bool
    """

    rule: WindowRule
    average: bool
    counts_padding: bool = False

    @property
    def label(self) -> str:
        """What computes it."""
        return f"{'mean' if self.average else 'largest'} of windows of planes"

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the output."""
        given = shapes[self.inputs[0]]
        if len(given) != 2 + len(self.rule.kernel) or 0 in given:
            raise UnplannableError
        try:
            plan = plan_windows(self.rule, given[2:])
        except ValueError as error:
            raise UnplannableError from error
        reach = [(k - 1) * d + 1 for k, d in zip(self.rule.kernel, self.rule.dilations, strict=True)]
        pads = (*plan.before, *plan.after)
        if any(plan.beyond) or max(reach) > _MOST_REACH or max(pads) > _MOST_REACH:
            raise UnplannableError
        return (*given[:2], *plan.out_shape)

    def constrain(self, choice: PlaneChoice, shapes: dict[str, Shape]) -> None:
        """Need planes of any layout."""
        choice.add(self.inputs[0], shapes[self.inputs[0]])
        choice.compute(self.output, shapes[self.output])

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the pooling."""
        source = plan.planes(self.inputs[0])
        out = plan.define_planes(self.output)
        placed = plan_windows(self.rule, shapes[self.inputs[0]][2:])
        rule = self.rule
        packed = pack_pool(
            PoolWindow(
                kernel=_pair(rule.kernel, 1),
                strides=_pair(rule.strides, 1),
                dilation=_pair(rule.dilations, 1),
                before=_pair(placed.before, 0),
                after=_pair(placed.after, 0),
                counts_padding=self.counts_padding,
            ),
            source.layout.plane,
            out.layout.plane,
        )
        plan.keep(packed)
        call = ChannelsCall(
            first=0,
            last=out.layout.n_channels,
            n_images=out.layout.n_images,
            source=source.area(),
            out=out.area(),
        )
        block = packed.block(call, plan.private(packed.buffer_floats))
        plan.step(POOL_AVERAGE if self.average else POOL_LARGEST, block, self.label)


@dataclass(slots=True, kw_only=True)
class GlobalAverage(Operation):
    """The mean of each channel.

    Attributes
    ----------
    keeps_axes : bool
        Whether the spatial axes stay, with one element.
    rank : int or None
        Rank that the operator demands of its input.
    """

    keeps_axes: bool = True
    rank: int | None = None

    @property
    def label(self) -> str:
        """What computes it."""
        return "mean of planes"

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the output."""
        given = shapes[self.inputs[0]]
        if len(given) not in (3, 4) or 0 in given or self.rank not in (None, len(given)):
            raise UnplannableError
        return (*given[:2], *(1,) * (len(given) - 2)) if self.keeps_axes else given[:2]

    def constrain(self, choice: PlaneChoice, shapes: dict[str, Shape]) -> None:
        """Need planes of any layout."""
        choice.add(self.inputs[0], shapes[self.inputs[0]])

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the means, an array in C order."""
        source = plan.planes(self.inputs[0])
        out = plan.define_rows(self.output, packed_rows(shapes[self.output]))
        n_images, n_channels = source.layout.n_images, source.layout.n_channels
        target = Area(address=out.address, channel_bytes=4, image_bytes=4 * n_channels)
        call = ChannelsCall(first=0, last=n_channels, n_images=n_images, source=source.area(), out=target)
        plan.step(AVERAGE_CHANNELS, average_channels(call, source.layout.plane), self.label)


def _pair(values: tuple[int, ...], filling: int) -> tuple[int, int]:
    first, second = (filling, *values)[-2:]
    return first, second
