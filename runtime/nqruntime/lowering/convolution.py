"""Convolutions with constant weights on planes."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from nqruntime.kernels.blocks import (
    COPY_ROWS,
    DENSE_PLANES,
    DEPTHWISE_PLANES,
    DEPTHWISE_ROWS,
    INT8_PLANES,
    LANES,
    QUANTIZE_PLANES,
    RANGE_PLANES,
    SCALE_PLANES,
    SPARSE_PLANES,
)
from nqruntime.operators.windows import WindowPlan, WindowRule, plan_windows
from nqruntime.packing.areas import address, aligned_copy, round_up
from nqruntime.packing.copy_steps import ChannelsCall
from nqruntime.packing.depthwise import DepthwisePlanes
from nqruntime.packing.int8_planes import Int8Planes
from nqruntime.packing.int8_rows import TABLE_FLOATS
from nqruntime.packing.plane_choice import PlaneWeights, Weights, int8_form, weight_forms
from nqruntime.packing.plane_layout import Area, PlaneLayout
from nqruntime.packing.plane_steps import (
    PlanesCall,
    dense_planes,
    scale_planes,
    sparse_planes,
)
from nqruntime.packing.planes import SparsePlanes, Taps, Window
from nqruntime.packing.strided import StridedPlan, plan_strided
from nqruntime.symbols import MatrixWeights

from .layouts import image_size
from .measuring import Chooser
from .operation import Clamp, Operation, Shape
from .plan import PlacedPlanes, PlanBuilder, UnplannableError
from .plane_choice import PlaneChoice


@dataclass(frozen=True, slots=True, kw_only=True)
class _Geometry:
    """A convolution on images of known size."""

    window: Window
    strides: tuple[int, int]
    pad: int
    out_size: tuple[int, int]

    @property
    def is_pointwise(self) -> bool:
        """Whether each output reads the position of its own only."""
        return self.window.kernel == self.strides == (1, 1) and self.window.before == (0, 0)

    @property
    def is_strided(self) -> bool:
        """Whether some positions of the source are skipped."""
        return self.strides != (1, 1)


@dataclass(slots=True, kw_only=True)
class Convolution(Operation):
    """A convolution, plus a bias, plus a value of its shape, clamped.

    Attributes
    ----------
    inputs : list of str
        The source, and the value that is added if there is one.
    weights : MatrixWeights
        Shape (outputs, channels of a group * kernel elements).
    rule : WindowRule
        Of one or two spatial axes.
    n_groups : int
    packed : PlaneWeights or None
        In the order of a kernel, for the taps `packed_for`.
    """

    weights: MatrixWeights
    rule: WindowRule
    n_groups: int
    chooser: Chooser
    bias: np.ndarray | None = None
    clamp: Clamp = field(default_factory=Clamp)
    packed: PlaneWeights | None = None
    packed_for: tuple[object, ...] = ()

    @property
    def label(self) -> str:
        """Form of the weights."""
        if self.packed is None:
            return "not chosen before the first run"
        shape = "x".join(map(str, (self.n_outputs, self.n_channels, *self.rule.kernel)))
        return f"{self.packed.label} of {shape}"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights and the bias."""
        held = 0 if self.packed is None else self.packed.weight_bytes
        return held + (0 if self.bias is None else self.bias.nbytes)

    @property
    def is_int8(self) -> bool:
        """Whether its activations are rounded to bytes."""
        return self.packed is not None and self.packed.is_int8

    @property
    def n_outputs(self) -> int:
        """Output channels."""
        return self.weights.shape[0]

    @property
    def n_channels(self) -> int:
        """Input channels of a group."""
        return self.weights.shape[1] // math.prod(self.rule.kernel)

    @property
    def _is_depthwise(self) -> bool:
        return self.n_channels == 1 and self.n_groups > 1

    @property
    def takes_sum(self) -> bool:
        """Whether another value can be added."""
        steps = any(stride != 1 for stride in self.rule.strides)
        return len(self.inputs) == 1 and self.clamp.is_open and not (self._is_depthwise and steps)

    @property
    def _n_parts(self) -> int:
        """Steps: a group each, but all groups of a depthwise convolution together."""
        return 1 if self._is_depthwise else self.n_groups

    @property
    def _part_channels(self) -> int:
        return self.n_channels * self.n_groups // self._n_parts

    def shape(self, shapes: dict[str, Shape]) -> Shape:
        """Return the shape of the output."""
        given = shapes[self.inputs[0]]
        if len(given) != 2 + len(self.rule.kernel) or given[1] != self.n_channels * self.n_groups:
            raise UnplannableError
        if 0 in given:
            raise UnplannableError
        try:
            plan = plan_windows(self.rule, given[2:])
        except ValueError as error:
            raise UnplannableError from error
        shape = (given[0], self.n_outputs, *plan.out_shape)
        if self.inputs[1:] and shapes[self.inputs[1]] != shape:
            raise UnplannableError
        return shape

    def _geometry(self, given: Shape) -> _Geometry:
        plan: WindowPlan = plan_windows(self.rule, given[2:])
        kernel, strides, dilation = self.rule.kernel, self.rule.strides, self.rule.dilations
        before, after, out = plan.before, plan.after, plan.out_shape
        if len(kernel) == 1:
            kernel, strides, dilation = (1, *kernel), (1, *strides), (1, *dilation)
            before, after, out = (0, *before), (0, *after), (1, *out)
        return _Geometry(
            window=Window(kernel=_pair(kernel), dilation=_pair(dilation), before=_pair(before)),
            strides=_pair(strides),
            pad=max(*before, *after, 0),
            out_size=_pair(out),
        )

    def constrain(self, choice: PlaneChoice, shapes: dict[str, Shape]) -> None:
        """Say what planes the convolution needs."""
        source, output = self.inputs[0], self.output
        geometry = self._geometry(shapes[source])
        if geometry.is_strided and self._is_depthwise:
            choice.add(source, shapes[source], pad=geometry.pad)
            choice.compute(output, shapes[output])
        elif geometry.is_strided:
            choice.add(source, shapes[source])
            strided = self._strided(geometry, image_size(shapes[source]), 0)
            choice.compute(output, shapes[output], pitch=strided.layout.pitch)
        else:
            choice.add(source, shapes[source], pad=geometry.pad)
            choice.compute(output, shapes[output])
            choice.same_pitch(source, output)
        for added in self.inputs[1:]:
            choice.add(added, shapes[added])
            choice.same_pitch(added, output)

    def _strided(self, geometry: _Geometry, source: tuple[int, int], pitch: int) -> StridedPlan:
        """Plan the phases of the source such that an output row takes `pitch` floats, or as few as can be."""

        def planned(pad: int) -> StridedPlan:
            return plan_strided(
                geometry.window,
                strides=geometry.strides,
                source=source,
                out=geometry.out_size,
                n_channels=self._part_channels,
                pad=pad,
            )

        plan = planned(0)
        return plan if pitch <= plan.layout.pitch else planned(pitch - plan.layout.width)

    def lower(self, plan: PlanBuilder, shapes: dict[str, Shape]) -> None:
        """Append the convolution, after a copy of the source's phases if it has strides."""
        geometry = self._geometry(shapes[self.inputs[0]])
        source = plan.planes(self.inputs[0], inside=geometry.is_pointwise)
        added = [plan.planes(name, inside=True) for name in self.inputs[1:]]
        if geometry.is_strided and not self._is_depthwise:
            taps, areas = self._append_phases(plan, source, geometry)
        else:
            taps = Taps.of(geometry.window, source.layout.plane, self._part_channels)
            areas = [source.area(part * self._part_channels) for part in range(self._n_parts)]
        out = plan.define_planes(self.output)
        self._choose(taps, out.layout.plane)
        strides = geometry.strides if geometry.is_strided and self._is_depthwise else None
        self._append(plan, areas, out, added, (strides, source.layout.plane.pitch))

    def _append_phases(
        self, plan: PlanBuilder, source: PlacedPlanes, geometry: _Geometry
    ) -> tuple[Taps, list[Area]]:
        """Append the copy of the source's phases; return the taps on them, and where each part's begin."""
        pitch = plan.planes_of.pitch(self.output)
        strided = self._strided(geometry, image_size(source.layout.shape), pitch)
        if strided.layout.pitch != pitch:
            raise UnplannableError
        n_images, n_channels = source.layout.n_images, source.layout.n_channels
        image_floats = n_channels * strided.channel_size
        place = plan.scratch(n_images * image_floats + LANES)
        blocks = strided.copies(source.area(), source.layout.plane.pitch, place, n_images, n_channels)
        for block in blocks:
            plan.step(COPY_ROWS, block, "copy of phases")
        areas = [
            replace(strided.area(place, part * self._part_channels), image_bytes=4 * image_floats)
            for part in range(self._n_parts)
        ]
        return strided.taps, areas

    def _choose(self, taps: Taps, out: PlaneLayout) -> None:
        """Pack the weights for taps, in the form that is fastest."""
        wanted = (taps.channel_floats, taps.span, tuple(taps.offsets))
        if self.packed is not None and self.packed_for == wanted:
            return
        forms = weight_forms(self.weights, taps, self._n_parts, depthwise=self._is_depthwise)
        if self.chooser.int8 and self._n_parts == 1 and not self._is_depthwise:
            forms += int8_form(self.weights, taps)
        source_floats = taps.n_channels * taps.channel_floats
        margin = round_up(taps.span, LANES)
        mask = out.mask()

        def append(plan: PlanBuilder, form: PlaneWeights) -> None:
            source = plan.scratch(source_floats + 2 * margin) + 4 * margin
            target = plan.scratch(form.n_outputs * out.size + LANES)
            call = PlanesCall(
                first=0,
                last=form.n_outputs,
                n_images=1,
                source=Area(address=source, channel_bytes=4 * taps.channel_floats, image_bytes=0),
                out=Area.of(target, out, form.n_outputs),
                layout=out,
                mask=mask,
                bias=np.zeros(form.n_outputs, dtype=np.float32),
            )
            plan.keep(mask, call.bias)
            append_planes(plan, call, form.parts[0], self.label)

        question = f"{self.nodes[0]} for {out.height}x{out.width} at {out.pitch}"
        self.packed = self.chooser.fastest(forms, append, question)
        self.packed_for = wanted

    def _append(
        self,
        plan: PlanBuilder,
        areas: list[Area],
        out: PlacedPlanes,
        added: list[PlacedPlanes],
        stepped: tuple[tuple[int, int] | None, int],
    ) -> None:
        """Append the parts; `stepped` are the strides of a depthwise kernel, and the source's pitch."""
        assert self.packed is not None
        layout = out.layout.plane
        mask = layout.mask()
        plan.keep(mask, self.packed)
        per_part = self.packed.n_outputs
        factors = None if self.is_int8 else self.weights.factors
        bias = np.zeros(self.n_outputs, dtype=np.float32) if self.bias is None else self.bias
        for part, (area, weights) in enumerate(zip(areas, self.packed.parts, strict=True)):
            first = part * per_part
            call = PlanesCall(
                first=0,
                last=per_part,
                n_images=out.layout.n_images,
                source=area,
                out=out.area(first),
                layout=layout,
                mask=mask,
                bias=aligned_copy(np.zeros(per_part, dtype=np.float32)),
            )
            finished = replace(
                call,
                bias=aligned_copy(np.ascontiguousarray(bias[first : first + per_part])),
                low=self.clamp.low,
                high=self.clamp.high,
                residual=added[0].area(first) if added else None,
            )
            plan.keep(call.bias, finished.bias)
            now = finished if factors is None else call
            if isinstance(weights, DepthwisePlanes) and stepped[0] is not None:
                plan.step(DEPTHWISE_ROWS, depthwise_rows(now, weights, stepped[0], stepped[1]), self.label)
            else:
                append_planes(plan, now, weights, self.label)
            if factors is not None:
                scale = aligned_copy(np.ascontiguousarray(factors[first : first + per_part]))
                plan.keep(scale)
                block = scale_planes(replace(finished, source=call.out), address(scale))
                plan.step(SCALE_PLANES, block, "factors of the outputs")


def append_planes(plan: PlanBuilder, call: PlanesCall, weights: Weights, label: str) -> None:
    """Append the step of a convolution of one group."""
    if isinstance(weights, SparsePlanes):
        buffer = plan.private(weights.buffer_floats) if weights.buffer_floats else 0
        plan.step(SPARSE_PLANES, sparse_planes(call, weights, buffer), label)
    elif isinstance(weights, DepthwisePlanes):
        plan.step(DEPTHWISE_PLANES, weights.planes_block(call), label)
    elif isinstance(weights, Int8Planes):
        _append_int8(plan, call, weights, label)
    else:
        plan.step(DENSE_PLANES, dense_planes(call, weights, plan.private(weights.buffer_floats)), label)


def _append_int8(plan: PlanBuilder, call: PlanesCall, weights: Int8Planes, label: str) -> None:
    """Append a convolution of bytes, after the steps that quantize the source."""
    n_images = call.n_images
    n_floats = n_images * weights.image_floats + weights.taps.slack(call.layout) + LANES
    ranges = plan.scratch(TABLE_FLOATS * n_images * weights.taps.n_channels)
    table, own = plan.scratch(TABLE_FLOATS * n_images), plan.private(TABLE_FLOATS * n_images)
    quantized = plan.scratch(n_floats)
    plan.step(RANGE_PLANES, weights.range_block(call.source, n_images, ranges), "range of the source")
    block = weights.quantize_block(call.source, n_images, ranges=ranges, out=quantized, table=table, own=own)
    plan.step(QUANTIZE_PLANES, block, "source to int8")
    spare = plan.private(3 * LANES)
    plan.step(INT8_PLANES, weights.block(call, quantized=quantized, table=table, spare=spare), label)


def depthwise_rows(
    call: PlanesCall, weights: DepthwisePlanes, strides: tuple[int, int], source_pitch: int
) -> np.ndarray:
    """Return the block of a depthwise convolution with strides."""
    channels = ChannelsCall(
        first=call.first, last=call.last, n_images=call.n_images, source=call.source, out=call.out
    )
    return weights.rows_block(
        channels,
        source_pitch=source_pitch,
        layout=call.layout,
        strides=strides,
        bias=call.bias,
        low=call.low,
        high=call.high,
    )


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    first, second = values
    return first, second
