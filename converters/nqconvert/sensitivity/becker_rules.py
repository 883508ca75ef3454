"""How squared Jacobians carry diagonal second derivatives through single layers."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from nqformat.errors import ConversionError

__all__ = ["Rule", "Step", "rule_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One layer or function on the way back.

    Attributes
    ----------
    node : torch.fx.Node
    layer : torch.nn.Module or None
    curvature : tensor
        Second derivatives by the output, for each sample.
    output : tensor
    value_of : callable
        From an argument of the node to its value.
    add_parameter : callable
        Takes a parameter and its second derivatives, summed over samples.
    """

    node: Any
    layer: Any
    curvature: Any
    output: Any
    value_of: Callable[[Any], Any]
    add_parameter: Callable[[Any, Any], None]

    @property
    def source(self) -> Any:
        """The first argument: a node."""
        return self.node.args[0] if self.node.args else next(iter(self.node.kwargs.values()))

    @property
    def input(self) -> Any:
        """Value of the first argument."""
        return self.value_of(self.source)


Shares = Iterable[tuple[Any, Any]]
Rule = Callable[[Step], Shares]


def rule_of(node: Any, layer: Any) -> Rule | None:
    """Return the rule for a node of the traced module, or None if there is none."""
    import torch

    if node.op == "call_module":
        for kinds, rule in _module_rules(torch.nn):
            if isinstance(layer, kinds):
                return rule
        return None
    if node.op == "call_method":
        return _METHODS.get(node.target)
    return _function_rules(torch).get(node.target)


def _module_rules(nn: Any) -> list[tuple[tuple[Any, ...], Rule]]:
    elementwise = (
        *(nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Tanh, nn.Sigmoid),
        *(nn.Softplus, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Softsign),
    )
    pools = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d)
    moves = (nn.Flatten, nn.Unflatten, nn.ZeroPad1d, nn.ZeroPad2d, nn.ConstantPad1d, nn.ConstantPad2d)
    same = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity)
    return [
        ((nn.Linear,), _linear),
        ((nn.modules.conv._ConvTransposeNd,), _transposed_convolution),
        ((nn.modules.conv._ConvNd,), _convolution),
        ((nn.modules.batchnorm._BatchNorm,), _batch_norm),
        ((nn.ReLU, *elementwise), _elementwise),
        (pools, _selection),
        (moves, _selection),
        (same, _identity),
        ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _average_pool),
        ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _adaptive_average),
    ]


def _function_rules(torch: Any) -> dict[Any, Rule]:
    functional = torch.nn.functional
    rules: dict[Any, Rule] = dict.fromkeys((operator.add, torch.add, operator.iadd), _sum)
    elementwise = (
        *(torch.relu, functional.relu, torch.tanh, torch.sigmoid, functional.leaky_relu, functional.gelu),
        *(functional.silu, functional.elu, functional.relu6, functional.softplus, functional.hardtanh),
        *(functional.hardswish, functional.tanh, functional.sigmoid, torch.relu_),
    )
    rules |= dict.fromkeys(elementwise, _elementwise)
    selections = (
        *(torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze),
        *(operator.getitem, functional.pad, torch.cat),
    )
    rules |= dict.fromkeys(selections, _selection)
    for pool in (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d):
        rules[pool] = _selection
    rules |= dict.fromkeys((torch.mean,), _mean)
    adaptive = (functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d)
    rules |= dict.fromkeys(adaptive, _adaptive_average)
    rules[functional.dropout] = _identity
    return rules


def _linear(step: Step) -> Shares:
    import torch

    linear = torch.nn.functional.linear
    yield from _product(step, linear, channel_axis=-1)


def _convolution(step: Step) -> Shares:
    layer = step.layer

    def convolve(inputs: Any, weight: Any) -> Any:
        return layer._conv_forward(inputs, weight, None)

    yield from _product(step, convolve, channel_axis=1)


def _transposed_convolution(step: Step) -> Shares:
    import torch

    layer = step.layer
    if layer.padding_mode != "zeros" or len(step.node.args) > 1:
        raise ConversionError("'becker' needs zero padding and no output size in transposed convolutions")
    names = {1: "conv_transpose1d", 2: "conv_transpose2d", 3: "conv_transpose3d"}
    function = getattr(torch.nn.functional, names[len(layer.kernel_size)])

    def convolve(inputs: Any, weight: Any) -> Any:
        extra = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
        return function(inputs, weight, None, *extra)

    yield from _product(step, convolve, channel_axis=1)


def _vjp(function: Callable[[Any], Any], at: Any) -> Callable[[Any], Any]:
    """Return the function that multiplies a tensor by the transposed Jacobian of `function`."""
    import torch

    result: Any = torch.func.vjp(function, at)
    back: Callable[[Any], Any] = result[1]
    return back


def _product(step: Step, product: Callable[[Any, Any], Any], *, channel_axis: int) -> Shares:
    """Share of a product that is linear in inputs and weight: both squared (Becker, LeCun 1988, eq. 8)."""
    layer, inputs = step.layer, step.input
    weight = layer.weight.detach()
    back_to_weight = _vjp(lambda w: product(inputs.square(), w), weight)
    step.add_parameter(layer.weight, back_to_weight(step.curvature)[0])
    if layer.bias is not None:
        axis = channel_axis % step.curvature.ndim
        others = [i for i in range(step.curvature.ndim) if i != axis]
        step.add_parameter(layer.bias, step.curvature.sum(dim=others))
    back_to_inputs = _vjp(lambda x: product(x, weight.square()), inputs)
    yield step.source, back_to_inputs(step.curvature)[0]


def _batch_norm(step: Step) -> Shares:
    """Batch norm with fixed statistics is a scale and a shift of each channel."""
    layer, inputs = step.layer, step.input
    if layer.running_mean is None:
        raise ConversionError("'becker' needs batch norms with running statistics")
    shape = [1, -1] + [1] * (inputs.ndim - 2)
    inverse = (layer.running_var + layer.eps).rsqrt().reshape(shape)
    others = [i for i in range(inputs.ndim) if i != 1]
    factor = inverse
    if layer.weight is not None:
        normal = (inputs - layer.running_mean.reshape(shape)) * inverse
        step.add_parameter(layer.weight, (normal.square() * step.curvature).sum(dim=others))
        factor = inverse * layer.weight.detach().reshape(shape)
    if layer.bias is not None:
        step.add_parameter(layer.bias, step.curvature.sum(dim=others))
    yield step.source, step.curvature * factor.square()


def _replayed(step: Step, inputs: Any, at: Any = None) -> Any:
    """Run the node's function again with `inputs` in place of one argument's value."""
    source = step.source if at is None else at

    def filled(argument: Any) -> Any:
        if isinstance(argument, tuple | list):
            return type(argument)(filled(item) for item in argument)
        if argument is source:
            return inputs
        return step.value_of(argument)

    arguments = [filled(argument) for argument in step.node.args]
    named = {name: filled(argument) for name, argument in step.node.kwargs.items()}
    if step.layer is not None:
        return step.layer(*arguments, **named)
    if step.node.op == "call_method":
        return getattr(arguments[0], step.node.target)(*arguments[1:], **named)
    return step.node.target(*arguments, **named)


def _elementwise(step: Step) -> Shares:
    """Pass on f'(y)^2 for a = f(y), without the term of f''."""
    import torch

    back = _vjp(lambda x: _replayed(step, x.clone()), step.input)
    yield step.source, step.curvature * back(torch.ones_like(step.curvature))[0].square()


def _selection(step: Step) -> Shares:
    """Carry on through functions whose outputs are copies of inputs: the Jacobian's entries are 0 and 1."""
    first = step.source
    for source in first if isinstance(first, tuple | list) else [first]:
        value = step.value_of(source)
        if not hasattr(value, "is_floating_point") or not value.is_floating_point():
            continue
        back = _vjp(partial(_replayed, step, at=source), value)
        yield source, back(step.curvature)[0]


def _identity(step: Step) -> Shares:
    yield step.source, step.curvature


def _sum(step: Step) -> Shares:
    """Give each branch of a sum the whole curvature, as in a residual block."""
    if step.node.kwargs.get("alpha", 1) != 1:
        raise ConversionError("'becker' has no rule for a sum with alpha")
    for argument in step.node.args[:2]:
        value = step.value_of(argument)
        if not hasattr(value, "shape"):
            continue
        share = step.curvature
        extra = share.ndim - value.ndim
        axes = [i for i in range(share.ndim) if i < extra or (value.shape[i - extra] == 1 != share.shape[i])]
        summed = share.sum(dim=axes, keepdim=True) if axes else share
        yield argument, summed.reshape(value.shape)


def _averaged(step: Step, n_averaged: float) -> Shares:
    """Mean of n inputs: each entry 1 / n of the Jacobian squared is 1 / n of itself."""
    back = _vjp(lambda x: _replayed(step, x), step.input)
    yield step.source, back(step.curvature / n_averaged)[0]


def _average_pool(step: Step) -> Shares:
    layer = step.layer
    rank = step.input.ndim - 2
    kernel = layer.kernel_size if isinstance(layer.kernel_size, tuple) else (layer.kernel_size,) * rank
    padded = any(layer.padding) if isinstance(layer.padding, tuple) else bool(layer.padding)
    if (
        layer.ceil_mode
        or (padded and not layer.count_include_pad)
        or getattr(layer, "divisor_override", None)
    ):
        raise ConversionError("'becker' has no rule for average pooling with this padding or divisor")
    kernel = kernel if len(kernel) == rank else kernel * rank
    yield from _averaged(step, float(math.prod(kernel)))


def _adaptive_average(step: Step) -> Shares:
    rank = step.input.ndim - 2
    sizes, results = step.input.shape[-rank:], step.output.shape[-rank:]
    if any(before % after for before, after in zip(sizes, results, strict=True)):
        raise ConversionError("'becker' needs adaptive average pools that divide their input evenly")
    yield from _averaged(step, math.prod(sizes) / math.prod(results))


def _mean(step: Step) -> Shares:
    yield from _averaged(step, step.input.numel() / step.output.numel())


_METHODS: dict[Any, Rule] = {
    **dict.fromkeys(("relu", "relu_", "tanh", "sigmoid"), _elementwise),
    **dict.fromkeys(
        ("view", "reshape", "flatten", "permute", "transpose", "squeeze", "unsqueeze", "contiguous"),
        _selection,
    ),
    "mean": _mean,
    "add": _sum,
    "add_": _sum,
}
