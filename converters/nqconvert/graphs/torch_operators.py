"""ONNX operators as differentiable torch functions.

Each takes inputs, attributes, the number of outputs and the opset, and returns one value or a tuple.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["OPERATORS", "unfolded"]

_Inputs = list[Any]
_Attributes = dict[str, Any]

_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}
_DTYPES = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}


def _elementwise(function: Callable[..., Tensor]) -> Callable[..., Any]:
    return lambda inputs, attributes, n_outputs, opset: function(*inputs)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Any]:
    """Return an operator of any number of inputs."""

    def apply(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
        total: Tensor = inputs[0]
        for value in inputs[1:]:
            total = function(total, value)
        return total

    return apply


def _ints(value: Any) -> list[int]:
    listed = value.reshape(-1).tolist() if isinstance(value, Tensor) else value
    return [int(v) for v in listed]


def _axes(inputs: _Inputs, attributes: _Attributes) -> list[int] | None:
    """Axes from the second input or the attribute."""
    if len(inputs) > 1 and inputs[1] is not None:
        return _ints(inputs[1])
    return _ints(attributes["axes"]) if "axes" in attributes else None


def _gemm(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    left = inputs[0].T if attributes.get("transA") else inputs[0]
    right = inputs[1].T if attributes.get("transB") else inputs[1]
    product: Tensor = (left @ right) * attributes.get("alpha", 1.0)
    if len(inputs) < 3 or inputs[2] is None:
        return product
    made: Tensor = product + inputs[2] * attributes.get("beta", 1.0)
    return made


def padded(value: Tensor, kernel: list[int], attributes: _Attributes, fill: float = 0.0) -> Tensor:
    """Pad the spatial axes of (n, c, ...) as a convolution or pooling with these attributes does."""
    n_axes = len(kernel)
    mode = attributes.get("auto_pad", b"NOTSET").decode()
    strides = _ints(attributes.get("strides", [1] * n_axes))
    dilations = _ints(attributes.get("dilations", [1] * n_axes))
    pads = _ints(attributes.get("pads", [0] * 2 * n_axes))
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        pads = [0] * 2 * n_axes
        for axis in range(n_axes):
            size, reach = value.shape[2 + axis], (kernel[axis] - 1) * dilations[axis] + 1
            total = max((-(-size // strides[axis]) - 1) * strides[axis] + reach - size, 0)
            pads[axis] = total // 2 if mode == "SAME_UPPER" else total - total // 2
            pads[axis + n_axes] = total - pads[axis]
    if not any(pads):
        return value
    pairs = [pad for axis in reversed(range(n_axes)) for pad in (pads[axis], pads[axis + n_axes])]
    return functional.pad(value, pairs, value=fill)


def _conv(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    kernel = list(inputs[1].shape[2:])
    function = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[len(kernel)]
    result: Tensor = function(
        padded(inputs[0], kernel, attributes),
        inputs[1],
        inputs[2] if len(inputs) > 2 else None,
        stride=_ints(attributes.get("strides", [1] * len(kernel))),
        dilation=_ints(attributes.get("dilations", [1] * len(kernel))),
        groups=attributes.get("group", 1),
    )
    return result


def unfolded(value: Tensor, kernel: list[int], attributes: _Attributes) -> Tensor:
    """Return the windows a convolution sees: (n, channels, kernel elements, positions)."""
    wide = padded(value, kernel, attributes)
    strides = _ints(attributes.get("strides", [1] * len(kernel)))
    dilations = _ints(attributes.get("dilations", [1] * len(kernel)))
    for axis, size in enumerate(kernel):
        reach = (size - 1) * dilations[axis] + 1
        wide = wide.unfold(2 + axis, reach, strides[axis])[..., :: dilations[axis]]
    n_axes = len(kernel)
    order = [0, 1, *range(2 + n_axes, 2 + 2 * n_axes), *range(2, 2 + n_axes)]
    moved = wide.permute(order)
    return moved.reshape(value.shape[0], value.shape[1], _product(kernel), -1)


def _product(sizes: list[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _conv_transpose(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    n_axes = inputs[1].ndim - 2
    if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in attributes:
        raise ValueError("ConvTranspose with auto_pad or output_shape")
    pads = _ints(attributes.get("pads", [0] * 2 * n_axes))
    made: Tensor = _TRANSPOSED[n_axes](
        inputs[0],
        inputs[1],
        inputs[2] if len(inputs) > 2 else None,
        stride=_ints(attributes.get("strides", [1] * n_axes)),
        output_padding=_ints(attributes.get("output_padding", [0] * n_axes)),
        groups=attributes.get("group", 1),
        dilation=_ints(attributes.get("dilations", [1] * n_axes)),
    )
    for axis in range(n_axes):
        made = made.narrow(2 + axis, pads[axis], made.shape[2 + axis] - pads[axis] - pads[axis + n_axes])
    return made


def _ceil_padded(value: Tensor, kernel: list[int], attributes: _Attributes, fill: float) -> Tensor:
    """Pad at the ends as far as ``ceil_mode`` lets the last window reach."""
    wide = padded(value, kernel, attributes, fill)
    if not attributes.get("ceil_mode"):
        return wide
    pairs: list[int] = []
    strides = _ints(attributes.get("strides", [1] * len(kernel)))
    for axis in reversed(range(len(kernel))):
        over = (wide.shape[2 + axis] - kernel[axis]) % strides[axis]
        pairs += [0, strides[axis] - over if over else 0]
    return functional.pad(wide, pairs, value=fill)


def _max_pool(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    kernel = _ints(attributes["kernel_shape"])
    function = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[len(kernel)]
    made: Tensor = function(
        _ceil_padded(inputs[0], kernel, attributes, float("-inf")),
        kernel,
        stride=_ints(attributes.get("strides", [1] * len(kernel))),
        dilation=_ints(attributes.get("dilations", [1] * len(kernel))),
    )
    return made


def _average_pool(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    kernel = _ints(attributes["kernel_shape"])
    if "dilations" in attributes and any(d != 1 for d in attributes["dilations"]):
        raise ValueError("AveragePool with dilations")
    function = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[len(kernel)]
    strides = _ints(attributes.get("strides", [1] * len(kernel)))
    wide = _ceil_padded(inputs[0], kernel, attributes, 0.0)
    made: Tensor = function(wide, kernel, stride=strides)
    if wide.shape == inputs[0].shape or (
        attributes.get("count_include_pad") and not attributes.get("ceil_mode")
    ):
        return made
    ones = torch.ones_like(inputs[0])
    inside = padded(ones, kernel, attributes, 1.0 if attributes.get("count_include_pad") else 0.0)
    if wide.shape != inside.shape:
        over = [w - i for w, i in zip(wide.shape, inside.shape, strict=True)]
        inside = functional.pad(inside, [p for size in reversed(over[2:]) for p in (0, size)])
    return made / function(inside, kernel, stride=strides)


def _batch_norm(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    value, scale, shift, mean, variance = inputs
    return functional.batch_norm(value, mean, variance, scale, shift, eps=attributes.get("epsilon", 1e-5))


def _layer_norm(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    value = inputs[0]
    axis = attributes.get("axis", -1) % value.ndim
    bias = inputs[2] if len(inputs) > 2 else None
    return functional.layer_norm(value, value.shape[axis:], inputs[1], bias, attributes.get("epsilon", 1e-5))


def _reduction(function: Callable[..., Tensor]) -> Callable[..., Any]:
    def apply(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
        axes = _axes(inputs, attributes)
        if axes is None:
            if attributes.get("noop_with_empty_axes"):
                return inputs[0]  # type: ignore[no-any-return]
            axes = list(range(inputs[0].ndim))
        return function(inputs[0], dim=axes, keepdim=bool(attributes.get("keepdims", 1)))

    return apply


def _softmax(log: bool) -> Callable[..., Any]:
    function = functional.log_softmax if log else functional.softmax

    def apply(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
        value = inputs[0]
        if opset >= 13:
            return function(value, dim=attributes.get("axis", -1))
        axis = attributes.get("axis", 1) % value.ndim
        return function(value.flatten(axis), dim=axis).reshape(value.shape)

    return apply


def _reshape(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    wanted = _ints(inputs[1])
    if not attributes.get("allowzero"):
        wanted = [inputs[0].shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    made: Tensor = inputs[0].reshape(wanted)
    return made


def _flatten(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    axis = attributes.get("axis", 1)
    axis = axis + inputs[0].ndim if axis < 0 else axis
    rows = _product(list(inputs[0].shape[:axis]))
    made: Tensor = inputs[0].reshape(rows, -1)
    return made


def _transpose(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    made: Tensor = inputs[0].permute(_ints(attributes.get("perm", list(reversed(range(inputs[0].ndim))))))
    return made


def _squeeze(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    axes = _axes(inputs, attributes)
    made: Tensor = inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))
    return made


def _unsqueeze(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    axes = _axes(inputs, attributes) or []
    value: Tensor = inputs[0]
    n_axes = value.ndim + len(axes)
    for axis in sorted(a % n_axes for a in axes):
        value = value.unsqueeze(axis)
    return value


def _concat(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    return torch.cat(inputs, dim=attributes["axis"])


def _split(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> tuple[Tensor, ...]:
    axis = attributes.get("axis", 0)
    if len(inputs) > 1 and inputs[1] is not None:
        sizes = _ints(inputs[1])
    elif "split" in attributes:
        sizes = _ints(attributes["split"])
    else:
        whole = inputs[0].shape[axis]
        part = -(-whole // n_outputs)
        sizes = [min(part, whole - start) for start in range(0, whole, part)]
    return torch.split(inputs[0], sizes, dim=axis)


def _slice(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    if opset < 10:
        starts, ends = _ints(attributes["starts"]), _ints(attributes["ends"])
        axes = _ints(attributes.get("axes", range(len(starts))))
        steps = [1] * len(starts)
    else:
        starts, ends = _ints(inputs[1]), _ints(inputs[2])
        axes = _ints(inputs[3]) if len(inputs) > 3 and inputs[3] is not None else list(range(len(starts)))
        steps = _ints(inputs[4]) if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    value: Tensor = inputs[0]
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = value.shape[axis]
        index = torch.arange(size)[slice(start, end, step)] if step > 0 else None
        if index is None:
            first, last, _ = slice(start, end, step).indices(size)
            index = torch.arange(first, last, step)
            value = value.index_select(axis, index)
        elif index.numel() != size:
            value = value[(slice(None),) * (axis % value.ndim) + (slice(start, end, step),)]
    return value


def _gather(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    value, index = inputs
    axis = attributes.get("axis", 0) % value.ndim
    index = torch.where(index < 0, index + value.shape[axis], index).long()
    made: Tensor = value.index_select(axis, index.reshape(-1))
    return made.reshape(*value.shape[:axis], *index.shape, *value.shape[axis + 1 :])


def _pad(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    pads = _ints(attributes["pads"]) if opset < 11 else _ints(inputs[1])
    given = inputs[2] if len(inputs) > 2 and inputs[2] is not None else attributes.get("value", 0.0)
    fill = float(given)
    n_axes = inputs[0].ndim
    if len(inputs) > 3 and inputs[3] is not None:
        axes = [a % n_axes for a in _ints(inputs[3])]
        wide = [0] * 2 * n_axes
        for place, axis in enumerate(axes):
            wide[axis], wide[axis + n_axes] = pads[place], pads[place + len(axes)]
        pads = wide
    mode = attributes.get("mode", b"constant").decode()
    pairs = [pad for axis in reversed(range(n_axes)) for pad in (pads[axis], pads[axis + n_axes])]
    if mode == "constant":
        return functional.pad(inputs[0], pairs, value=fill)
    while len(pairs) > 2 and pairs[-2:] == [0, 0]:
        pairs = pairs[:-2]
    return functional.pad(inputs[0], pairs, mode={"reflect": "reflect", "edge": "replicate"}[mode])


def _constant(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    from onnx import numpy_helper

    for name, value in attributes.items():
        if name == "value":
            return torch.from_numpy(numpy_helper.to_array(value).copy())
        if name in ("value_int", "value_ints"):
            return torch.tensor(value, dtype=torch.int64)
        if name in ("value_float", "value_floats"):
            return torch.tensor(value, dtype=torch.float32)
    raise ValueError("Constant without a value")


def _constant_of_shape(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    from onnx import numpy_helper

    if "value" not in attributes:
        return torch.zeros(_ints(inputs[0]))
    fill = torch.from_numpy(numpy_helper.to_array(attributes["value"]).copy())
    return fill.reshape(-1)[0].expand(_ints(inputs[0])).clone()


def _cast(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    made: Tensor = inputs[0].to(_DTYPES[attributes["to"]])
    return made


def _shape(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    sizes = list(inputs[0].shape)[attributes.get("start", 0) : attributes.get("end")]
    return torch.tensor(sizes, dtype=torch.int64)


def _clip(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    low = inputs[1] if len(inputs) > 1 else attributes.get("min")
    high = inputs[2] if len(inputs) > 2 else attributes.get("max")
    return inputs[0] if low is None and high is None else torch.clamp(inputs[0], low, high)


def _expand(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    shape = np.broadcast_shapes(tuple(inputs[0].shape), tuple(_ints(inputs[1])))
    made: Tensor = inputs[0].expand(shape)
    return made


def _gelu(inputs: _Inputs, attributes: _Attributes, n_outputs: int, opset: int) -> Tensor:
    return functional.gelu(inputs[0], approximate=attributes.get("approximate", b"none").decode())


def _div(left: Tensor, right: Tensor) -> Tensor:
    if left.dtype.is_floating_point:
        return left / right
    return torch.div(left, right, rounding_mode="trunc")


def _mean(value: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return value.mean(dim=dim, keepdim=keepdim)


def _sum(value: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    return value.sum(dim=dim, keepdim=keepdim)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": _elementwise(torch.abs),
    "Add": _elementwise(torch.add),
    "And": _elementwise(torch.logical_and),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Cos": _elementwise(torch.cos),
    "Div": _elementwise(_div),
    "Dropout": lambda inputs, attributes, n_outputs, opset: inputs[0],
    "Elu": lambda i, a, n, o: functional.elu(i[0], a.get("alpha", 1.0)),
    "Equal": _elementwise(torch.eq),
    "Erf": _elementwise(torch.erf),
    "Exp": _elementwise(torch.exp),
    "Expand": _expand,
    "Flatten": _flatten,
    "Floor": _elementwise(torch.floor),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda i, a, n, o: i[0].mean(dim=tuple(range(2, i[0].ndim)), keepdim=True),
    "GlobalMaxPool": lambda i, a, n, o: i[0].amax(dim=tuple(range(2, i[0].ndim)), keepdim=True),
    "Greater": _elementwise(torch.gt),
    "HardSigmoid": lambda i, a, n, o: torch.clamp(i[0] * a.get("alpha", 0.2) + a.get("beta", 0.5), 0.0, 1.0),
    "HardSwish": _elementwise(functional.hardswish),
    "Identity": lambda i, a, n, o: i[0],
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda i, a, n, o: functional.leaky_relu(i[0], a.get("alpha", 0.01)),
    "Less": _elementwise(torch.lt),
    "Log": _elementwise(torch.log),
    "LogSoftmax": _softmax(log=True),
    "MatMul": _elementwise(torch.matmul),
    "Max": _folded(torch.maximum),
    "MaxPool": _max_pool,
    "Min": _folded(torch.minimum),
    "Mul": _elementwise(torch.mul),
    "Neg": _elementwise(torch.neg),
    "Not": _elementwise(torch.logical_not),
    "Or": _elementwise(torch.logical_or),
    "PRelu": _elementwise(lambda value, slope: torch.where(value < 0, value * slope, value)),
    "Pad": _pad,
    "Pow": _elementwise(torch.pow),
    "Range": _elementwise(lambda first, last, step: torch.arange(first.item(), last.item(), step.item())),
    "Reciprocal": _elementwise(torch.reciprocal),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(_mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(_sum),
    "Relu": _elementwise(torch.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _elementwise(torch.sigmoid),
    "Sin": _elementwise(torch.sin),
    "Slice": _slice,
    "Softmax": _softmax(log=False),
    "Softplus": _elementwise(functional.softplus),
    "Split": _split,
    "Sqrt": _elementwise(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _elementwise(torch.sub),
    "Sum": _folded(torch.add),
    "Swish": lambda i, a, n, o: i[0] * torch.sigmoid(i[0] * a.get("alpha", 1.0)),
    "Tanh": _elementwise(torch.tanh),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Where": _elementwise(torch.where),
}
"""Functions by ONNX operator type."""
