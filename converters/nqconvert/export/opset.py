"""Change the opset of a graph whose weights are kept elsewhere."""

from __future__ import annotations

from typing import Any

from nqconvert.graphs.onnx_tensor import ONNX_OF_DTYPE
from nqformat import TensorInfo
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .pending import known_dtype
from .restore import opset_of


def with_opset(model: Any, opset: int, infos: tuple[TensorInfo, ...]) -> Any:
    """Return a copy of `model` at another opset.

    Parameters
    ----------
    model : onnx.ModelProto
        Its tensors may be missing: they are declared as inputs while it is converted.
    opset : int
    infos : tuple of TensorInfo
        The missing tensors.

    Raises
    ------
    ConversionError
        If the graph uses an operator that cannot be converted.
    """
    if opset_of(model) == opset:
        same = type(model)()
        same.CopyFrom(model)
        return same
    onnx = require_package("onnx")
    from onnx import version_converter

    n_inputs = len(model.graph.input)
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    try:
        converted = version_converter.convert_version(with_tensors_as_inputs(model, infos), opset)
    except Exception as error:
        raise ConversionError(
            f"the graph cannot be converted to opset {opset}: {_first_line(error)}"
        ) from error
    del converted.graph.input[n_inputs:]
    if [value.name for value in (*converted.graph.input, *converted.graph.output)] != names:
        raise ConversionError(f"the graph cannot be converted to opset {opset}: its inputs or outputs change")
    converted.ir_version = max(
        model.ir_version, onnx.helper.find_min_ir_version_for(converted.opset_import, True)
    )
    del converted.graph.value_info[:]
    return converted


def with_tensors_as_inputs(model: Any, infos: tuple[TensorInfo, ...]) -> Any:
    """Return a copy of a model with its missing tensors declared as inputs, for tools that must know them."""
    make = require_package("onnx").helper.make_tensor_value_info
    copy = type(model)()
    copy.CopyFrom(model)
    copy.graph.input.extend(make(i.name, ONNX_OF_DTYPE[known_dtype(i)], i.shape) for i in infos)
    return copy


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
