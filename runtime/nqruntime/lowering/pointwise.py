"""Sums, factors and clamps, element by element."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from nqruntime.kernels.blocks import SCALE_PLANES
from nqruntime.packing.areas import address, aligned_copy
from nqruntime.packing.plane_layout import Area, PlaneLayout
from nqruntime.packing.plane_steps import PlanesCall, scale_planes

from .layouts import packed_rows
from .operation import Clamp, Operation, Shape
from .plan import PlanBuilder, UnplannableError
from .plane_choice import PlaneChoice


@dataclass(slots=True, kw_only=True)
class Pointwise(Operation):
    """The first input times a factor plus a bias, both by channel, plus the second input, clamped.

    Attributes
    ----------
    inputs : list of str
        One or two values of the same shape.
    factors, bias : ndarray of float32, shape (channels,), or None
    """

    clamp: Clamp = field(default_factory=Clamp)
    factors: np.ndarray | None = None
    bias: np.ndarray | None = None

    @property
    def label(self) -> str:
        """What computes it."""
        parts = ["factor"] * (self.factors is not None) + ["sum"] * (len(self.inputs) > 1)
        return f"{' and '.join([*parts, 'clamp'][:2])} of planes"

    @property
    def weight_bytes(self) -> int:
        """Bytes of factors and bias."""
        return sum(array.nbytes for array in (self.factors, self.bias) if array is not None)

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the inputs."""
        given = shapes[self.inputs[0]]
        if any(shapes[name] != given for name in self.inputs) or 0 in given:
            raise UnplannableError
        if self.factors is not None and (len(given) not in (3, 4) or given[1] != self.factors.size):
            raise UnplannableError
        return given

    def constrain(self, choice: PlaneChoice, shapes: dict[str, Shape]) -> None:
        """Work on planes if an input is computed as such, or a channel has its own factor."""
        if self.factors is None and not any(choice.computes(name) for name in self.inputs):
            return
        choice.compute(self.output, shapes[self.output])
        for name in self.inputs:
            choice.add(name, shapes[name])
            choice.same_pitch(name, self.output)

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the step."""
        if plan.planes_of.computes(self.output):
            sources = [plan.planes(name) for name in self.inputs]
            out = plan.define_planes(self.output)
            areas = [source.area() for source in sources]
            n_images, n_channels = out.layout.n_images, out.layout.n_channels
            self._append(plan, areas, out.area(), out.layout.plane, (n_images, n_channels))
            return
        packed = [plan.readable_beyond(name) for name in self.inputs]
        target = plan.define_rows(self.output, packed_rows(shapes[self.output]))
        layout = PlaneLayout(height=1, width=int(np.prod(shapes[self.output])))
        places = [
            Area(address=placed.address, channel_bytes=0, image_bytes=0) for placed in (*packed, target)
        ]
        self._append(plan, places[:-1], places[-1], layout, (1, 1))

    def _append(
        self, plan: PlanBuilder, sources: list[Area], out: Area, layout: PlaneLayout, count: tuple[int, int]
    ) -> None:
        n_images, n_channels = count
        ones, zeros = np.ones(n_channels, dtype=np.float32), np.zeros(n_channels, dtype=np.float32)
        factors = aligned_copy(ones if self.factors is None else self.factors)
        bias = aligned_copy(zeros if self.bias is None else self.bias)
        mask = layout.mask()
        plan.keep(factors, bias, mask)
        call = PlanesCall(
            first=0,
            last=n_channels,
            n_images=n_images,
            source=sources[0],
            out=out,
            layout=layout,
            mask=mask,
            bias=bias,
            low=self.clamp.low,
            high=self.clamp.high,
            residual=sources[1] if len(sources) > 1 else None,
        )
        plan.step(SCALE_PLANES, scale_planes(call, address(factors)), self.label)
