"""Resize: interpolation along each axis in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nqruntime.constants import Constant

from .registry import NodeContext, Run, operator

_NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
}
_TRANSFORMS = (
    "half_pixel",
    "half_pixel_symmetric",
    "pytorch_half_pixel",
    "align_corners",
    "asymmetric",
    "tf_crop_and_resize",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """Attributes of a Resize node, and how far a filter reaches in input elements."""

    mode: str
    transform: str
    nearest: str
    cubic: float
    exclude_outside: bool
    extrapolation: float
    antialias: bool
    policy: str


@operator("Resize", 10)
def resize_by_scales(context: NodeContext) -> Run:
    """Resize by scales, in the coordinates of opset 10."""
    rule = _read_rule(context, transform="asymmetric", nearest="floor")
    return lambda x, scales: _resize(context, x, rule, list(range(x.ndim)), scales=scales.tolist())


@operator("Resize", 11)
def resize(context: NodeContext) -> Run:
    """Resize by scales or to sizes, of all axes or of some."""
    rule = _read_rule(context, transform="half_pixel", nearest="round_prefer_floor")
    axes = context.integers("axes")
    if rule.transform == "align_corners" and context.has_input(2) and not _are_whole(context.constant(2)):
        # the specification divides by the exact length less 1, ONNX Runtime by the whole one
        raise context.refuse("Resize by scales that may not be whole, with aligned corners")

    def run(
        x: np.ndarray,
        roi: np.ndarray | None = None,
        scales: np.ndarray | None = None,
        sizes: np.ndarray | None = None,
    ) -> np.ndarray:
        along = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
        given = None if scales is None or scales.size == 0 else scales.tolist()
        wanted = None if sizes is None or sizes.size == 0 else sizes.tolist()
        window = None if roi is None or rule.transform != "tf_crop_and_resize" else roi.tolist()
        return _resize(context, x, rule, along, scales=given, sizes=wanted, window=window)

    return run


def _are_whole(scales: Constant | None) -> bool:
    return scales is not None and bool((scales.array() % 1 == 0).all())


def _read_rule(context: NodeContext, *, transform: str, nearest: str) -> _Rule:
    rule = _Rule(
        mode=context.text("mode", "nearest"),
        transform=context.text("coordinate_transformation_mode", transform),
        nearest=context.text("nearest_mode", nearest),
        cubic=context.number("cubic_coeff_a", -0.75),
        exclude_outside=bool(context.integer("exclude_outside", 0)),
        extrapolation=context.number("extrapolation_value", 0.0),
        antialias=bool(context.integer("antialias", 0)),
        policy=context.text("keep_aspect_ratio_policy", "stretch"),
    )
    for value, known in (
        (rule.mode, ("nearest", "linear", "cubic")),
        (rule.transform, _TRANSFORMS),
        (rule.nearest, _NEAREST),
        (rule.policy, ("stretch", "not_larger", "not_smaller")),
    ):
        if value not in known:
            raise context.refuse(f"Resize with {value!r}")
    return rule


def _resize(
    context: NodeContext,
    x: np.ndarray,
    rule: _Rule,
    axes: Sequence[int],
    *,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
    window: list[float] | None = None,
) -> np.ndarray:
    """Interpolate along every axis that changes; float32 results keep the input's type."""
    factors, lengths = _targets(x, rule, axes, scales, sizes)
    context.check_size(math.prod(lengths) * math.prod(x.shape) // max(1, _kept(x, axes)), x.itemsize)
    out = x
    beyond = np.zeros((), dtype=bool)
    for i, axis in enumerate(axes):
        ends = (0.0, 1.0) if window is None else (window[i], window[i + len(axes)])
        if lengths[i] == x.shape[axis] and factors[i] == 1 and ends == (0.0, 1.0):
            continue
        places = _coordinates(rule, x.shape[axis], lengths[i], factors[i], ends)
        out = _along(rule, out, axis, places, factors[i])
        if rule.transform == "tf_crop_and_resize":
            outside = (places < 0) | (places > x.shape[axis] - 1)
            beyond = beyond | outside.reshape(-1, *(1,) * (x.ndim - axis - 1))
    if beyond.any():
        out = np.where(beyond, x.dtype.type(rule.extrapolation), out)
    return out.astype(x.dtype, copy=False)


def _kept(x: np.ndarray, axes: Sequence[int]) -> int:
    return math.prod(x.shape[axis] for axis in axes)


def _targets(
    x: np.ndarray, rule: _Rule, axes: Sequence[int], scales: list[float] | None, sizes: list[int] | None
) -> tuple[list[float], list[int]]:
    """Return scale and length of each axis; ValueError if neither or both are given."""
    if (scales is None) == (sizes is None):
        raise ValueError("Resize needs either scales or sizes")
    given = scales if scales is not None else sizes
    assert given is not None
    if len(given) != len(axes) or min(given, default=1) <= 0:
        raise ValueError(f"{given} are no scales or sizes of {len(axes)} axes")
    if scales is not None:
        return scales, [math.floor(x.shape[axis] * s) for axis, s in zip(axes, scales, strict=True)]
    assert sizes is not None
    factors = [size / x.shape[axis] for axis, size in zip(axes, sizes, strict=True)]
    if rule.policy == "stretch":
        return factors, sizes
    common = min(factors) if rule.policy == "not_larger" else max(factors)
    return [common] * len(axes), [math.floor(common * x.shape[axis] + 0.5) for axis in axes]


def _coordinates(rule: _Rule, n_in: int, n_out: int, scale: float, ends: tuple[float, float]) -> np.ndarray:
    """Return where each output element lies in the input: float64, shape (n_out,)."""
    x = np.arange(n_out, dtype=np.float64)
    if rule.transform == "align_corners":
        return x * (n_in - 1) / (n_out - 1) if n_out > 1 else np.zeros(n_out)
    if rule.transform == "asymmetric":
        return x / scale
    if rule.transform == "tf_crop_and_resize":
        first, last = ends
        if n_out > 1:
            return first * (n_in - 1) + x * (last - first) * (n_in - 1) / (n_out - 1)
        return np.full(n_out, 0.5 * (first + last) * (n_in - 1))
    if rule.transform == "pytorch_half_pixel" and n_out == 1:
        return np.zeros(n_out)
    if rule.transform == "half_pixel_symmetric":
        exact = n_in * scale
        centre = n_in / 2 * (1 - n_out / exact)
        return centre + _half_pixels(x, scale)
    return _half_pixels(x, scale)


def _half_pixels(x: np.ndarray, scale: float) -> np.ndarray:
    """Return (x + 1/2) / scale - 1/2, computed in float32 as ONNX Runtime does, so that ties fall alike."""
    places = (x + 0.5).astype(np.float32) / np.float32(scale) - np.float32(0.5)
    return places.astype(np.float64)


def _along(rule: _Rule, x: np.ndarray, axis: int, places: np.ndarray, scale: float) -> np.ndarray:
    """Interpolate along one axis at the given places."""
    n_in = x.shape[axis]
    if rule.mode == "nearest":
        chosen = np.clip(_NEAREST[rule.nearest](places), 0, n_in - 1).astype(np.int64)
        picked: np.ndarray = np.take(x, chosen, axis=axis)
        return picked
    reach = 1.0 if rule.mode == "linear" else 2.0
    stretch = min(scale, 1.0) if rule.antialias else 1.0
    n_taps = 2 * math.ceil(reach / stretch) + 1 if stretch < 1 else int(2 * reach)
    first = np.floor(places).astype(np.int64) - (n_taps - 1) // 2
    taps = first[:, None] + np.arange(n_taps)
    weights = _filter(rule, (taps - places[:, None]) * stretch)
    outside = (taps < 0) | (taps > n_in - 1)
    if rule.exclude_outside:
        weights = np.where(outside, 0, weights)
    weights /= weights.sum(axis=1, keepdims=True)
    taps = np.clip(taps, 0, n_in - 1)
    factors = weights.astype(x.dtype if x.dtype.kind == "f" else np.float64)
    shape = (-1, *(1,) * (x.ndim - axis - 1))
    total = np.zeros((), dtype=factors.dtype)
    for tap in range(n_taps):
        total = total + np.take(x, taps[:, tap], axis=axis) * factors[:, tap].reshape(shape)
    return total


def _filter(rule: _Rule, distance: np.ndarray) -> np.ndarray:
    """Return the weight of an input element at each distance."""
    d = np.abs(distance)
    if rule.mode == "linear":
        tent: np.ndarray = np.maximum(1 - d, 0)
        return tent
    a = rule.cubic
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0))
