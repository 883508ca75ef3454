"""Padding of any axes."""

from __future__ import annotations

import math

import numpy as np

from .registry import NodeContext, Run, operator

_NUMPY_MODES = {"constant": "constant", "reflect": "reflect", "edge": "edge"}
_NUMPY_MODES_19 = _NUMPY_MODES | {"wrap": "wrap"}


def _mode(context: NodeContext, modes: dict[str, str]) -> str:
    mode = context.text("mode", "constant")
    if mode not in modes:
        raise context.refuse(f"Pad with mode={mode!r}")
    return modes[mode]


def _pad(
    context: NodeContext, x: np.ndarray, pads: list[int], axes: list[int], *, mode: str, value: float | int
) -> np.ndarray:
    """Pad, or crop where a number is negative, the given axes."""
    if len(pads) != 2 * len(axes):
        raise ValueError(f"{len(pads)} numbers of padding for {len(axes)} axes")
    before, after = [0] * x.ndim, [0] * x.ndim
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    kept = tuple(slice(max(0, -b), s - max(0, -a)) for b, a, s in zip(before, after, x.shape, strict=True))
    widths = [(max(0, b), max(0, a)) for b, a in zip(before, after, strict=True)]
    cropped = x[kept]
    sizes = [size + sum(width) for size, width in zip(cropped.shape, widths, strict=True)]
    context.check_size(math.prod(sizes), x.itemsize)
    if mode == "constant":
        return np.pad(cropped, widths, constant_values=value)
    return np.pad(cropped, widths, mode=mode)  # type: ignore[call-overload,no-any-return]


@operator("Pad", 2)
def pad_by_attributes(context: NodeContext) -> Run:
    """Pad by the attributes `pads` and `value`."""
    pads = list(context.integers("pads") or ())
    mode, value = _mode(context, _NUMPY_MODES), context.number("value", 0.0)
    return lambda x: _pad(context, x, pads, list(range(x.ndim)), mode=mode, value=value)


def _prepare_pad(context: NodeContext, modes: dict[str, str]) -> Run:
    mode = _mode(context, modes)

    def run(
        x: np.ndarray, pads: np.ndarray, value: np.ndarray | None = None, axes: np.ndarray | None = None
    ) -> np.ndarray:
        fill = 0 if value is None else value.reshape(()).item()
        along = list(range(x.ndim)) if axes is None else axes.tolist()
        return _pad(context, x, pads.tolist(), along, mode=mode, value=fill)

    return run


@operator("Pad", 11)
def pad(context: NodeContext) -> Run:
    """Pad by the inputs `pads`, `constant_value` and, from opset 18, `axes`."""
    return _prepare_pad(context, _NUMPY_MODES)


@operator("Pad", 19)
def pad_or_wrap(context: NodeContext) -> Run:
    """Pad, also by wrapping around."""
    return _prepare_pad(context, _NUMPY_MODES_19)
