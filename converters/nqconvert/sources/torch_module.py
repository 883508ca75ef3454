"""PyTorch modules as sources: exported to ONNX, weights bound back to the module's own tensors."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nqconvert.graphs.ort_session import check_feed_names, open_session, relative_difference, run_session
from nqconvert.graphs.slimming import SlimGraph
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package

from .model_source import ModelSource, Runner
from .onnx_model import attach_external_data, parse_model, slim_model
from .state_dict import array_of_torch, is_torch_tensor, weight_entries

OPSET = 20
_LARGE_BYTES = 1 << 30
_EXPORT_TOLERANCE = 1e-3
_BATCH = "the batch size is fixed to that of the example"
_FURTHER = "axes of dynamic_axes are fixed to those of the example"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Example:
    """Arguments of one forward call, as torch tensors."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> list[Any]:
        """The tensors in the order of the exported graph's inputs."""
        return [value for value in (*self.args, *self.kwargs.values()) if value is not None]

    def with_tensors(self, tensors: list[Any]) -> _Example:
        """Return the same arguments with other tensors in place of these."""
        left = iter(tensors)
        args = tuple(None if value is None else next(left) for value in self.args)
        kwargs = {name: None if value is None else next(left) for name, value in self.kwargs.items()}
        return _Example(args=args, kwargs=kwargs)


def load_torch_module(
    module: Any,
    example_inputs: Any,
    *,
    weights: Any = None,
    dynamic_batch: bool = True,
    dynamic_axes: Mapping[str, Sequence[int]] | None = None,
    fold: bool = True,
) -> ModelSource:
    """Export a torch module and take it apart.

    The module is exported in evaluation mode and left in the mode it was in.

    Parameters
    ----------
    module : torch.nn.Module
    example_inputs : tensor, ndarray, sequence of these, or mapping from argument name to these
    weights : path or mapping of str to tensor, optional
        State dict to load into a copy of the module first.
    dynamic_batch : bool
        Leave axis 0 of every input open. If the exporter cannot, shapes are fixed and a note says so.
    dynamic_axes : mapping of str to sequence of int, optional
        Further axes to leave open, by the names of the arguments of ``forward``; a note says if the exporter
        cannot, and then only axis 0 is tried.
    fold : bool
        Fold batch norms that the exporter left.

    Raises
    ------
    ConversionError
        If the module cannot be exported, or the exported graph computes something else.
    """
    if example_inputs is None:
        raise ConversionError("a torch module needs example_inputs, so that its graph can be traced")
    if weights is not None:
        module = module_with_weights(module, weights)
    example = _example_of(module, example_inputs)
    shapes = {_BATCH: _dynamic_shapes(module, example, dynamic_batch, {})}
    if dynamic_axes:
        shapes = {_FURTHER: _dynamic_shapes(module, example, dynamic_batch, dynamic_axes), **shapes}
    with evaluation_mode(module):
        model, notes = _export(module, example, shapes)
        input_names = tuple(value.name for value in model.graph.input)
        output_names = tuple(value.name for value in model.graph.output)
        run = module_runner(module, example_inputs, input_names)
        feeds = {
            name: array_of_torch(name, tensor)
            for name, tensor in zip(input_names, example.tensors, strict=True)
        }
        notes += _compare_export(model, run, feeds)
    named = _module_tensors(module)
    slim, slim_notes = slim_model(model, named_tensors=named, fold=fold)
    return ModelSource(
        tensors=slim.tensors,
        views=slim.views,
        graph=slim.graph,
        reasons=slim.reasons,
        run=run,
        input_names=input_names,
        output_names=output_names,
        example_feeds=feeds,
        notes=(*notes, *slim_notes, *_binding_notes(slim, named)),
    )


def module_runner(
    module: Any, example_inputs: Any, input_names: tuple[str, ...], *, weights: Any = None
) -> Runner:
    """Return a function that computes a module's outputs, with the module as it is when called.

    Parameters
    ----------
    module : torch.nn.Module
    example_inputs : tensor, ndarray, sequence of these, or mapping from argument name to these
    input_names : tuple of str
        Names for the example's tensors, in the order of the exported graph's inputs.
    weights : path or mapping of str to tensor, optional
        State dict to load into a copy of the module first.

    Raises
    ------
    ConversionError
        If the number of names is not that of the example's tensors, or the weights do not fit.
    """
    if weights is not None:
        module = module_with_weights(module, weights)
    example = _example_of(module, example_inputs)
    if len(input_names) != len(example.tensors):
        raise ConversionError(
            f"the graph has inputs {list(input_names)}, the example has {len(example.tensors)} tensors"
        )
    return _runner(module, example, input_names)


def module_with_weights(module: Any, weights: Any) -> Any:
    """Return a copy of `module` with the state dict of a file or mapping.

    Raises
    ------
    FileNotFoundError
        If `weights` is a path that does not exist.
    ConversionError
        If the state dict does not fit the module.
    """
    torch = require_package("torch")
    loaded = copy.deepcopy(module)
    tensors = {name: torch.as_tensor(value) for name, value in weight_entries(weights).items()}
    try:
        loaded.load_state_dict(tensors)
    except RuntimeError as error:
        raise ConversionError(f"the weights do not fit the module: {error}") from None
    return loaded


def _example_of(module: Any, example_inputs: Any) -> _Example:
    """Bring the accepted forms of example inputs into arguments of ``forward``."""
    device = next((tensor.device for tensor in module.parameters()), None)
    if isinstance(example_inputs, Mapping):
        order = list(inspect.signature(module.forward).parameters)
        names = sorted(example_inputs, key=lambda n: order.index(n) if n in order else len(order))
        kwargs = {name: _tensor_of(name, example_inputs[name], device) for name in names}
        return _Example(args=(), kwargs=kwargs)
    values = example_inputs if isinstance(example_inputs, tuple | list) else (example_inputs,)
    args = tuple(_tensor_of(f"input {i}", value, device) for i, value in enumerate(values))
    return _Example(args=args, kwargs={})


def _tensor_of(name: str, value: Any, device: Any) -> Any:
    """Return one example input as a tensor on the module's device; None stays None."""
    torch = require_package("torch")
    if value is None:
        return None
    if not is_torch_tensor(value) and not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"example inputs must be tensors or arrays, {name} is a {type(value).__name__}")
    tensor = value.detach() if is_torch_tensor(value) else torch.from_numpy(np.array(value))
    return tensor if device is None else tensor.to(device)


@contextlib.contextmanager
def evaluation_mode(module: Any) -> Iterator[None]:
    """Put every submodule in evaluation mode for a while."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter from printing, logging and warning."""
    previous = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


def _export(module: Any, example: _Example, shapes: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """Return the exported ModelProto and notes.

    Parameters
    ----------
    module : torch.nn.Module
    example : _Example
    shapes : mapping of str to shapes
        Open axes to try one after the other, by what to say when they have to be given up; None for no open
        axes, which is tried last anyway.
    """
    require_package("onnx")
    require_package("onnxscript")
    notes: tuple[str, ...] = ()
    for words, wanted in shapes.items():
        if wanted is None:
            continue
        try:
            return _export_once(module, example, wanted), notes
        except Exception as error:
            notes += (f"{words}: {_cause(error)}",)
    try:
        return _export_once(module, example, None), notes
    except Exception as error:
        raise ConversionError(f"PyTorch cannot export {type(module).__name__}: {_cause(error)}") from error


def _export_once(module: Any, example: _Example, shapes: Any) -> Any:
    """Export with open axes or, for None, fixed shapes."""
    torch = require_package("torch")
    with _quiet(), torch.inference_mode(False), torch.no_grad():
        program = torch.onnx.export(
            module,
            example.args,
            kwargs=example.kwargs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            verbose=False,
        )
        return _proto_of_program(program, module)


def _dynamic_shapes(
    module: Any, example: _Example, dynamic_batch: bool, further: Mapping[str, Sequence[int]]
) -> Any:
    """Return the specification of open axes in the structure of the arguments; None if all are fixed.

    Raises
    ------
    ValueError
        If an axis is asked for that no argument has.
    """
    dynamic = require_package("torch").export.Dim.DYNAMIC
    parameters = list(inspect.signature(module.forward).parameters.values())
    starred = next((i for i, p in enumerate(parameters) if p.kind is p.VAR_POSITIONAL), None)
    names = [parameters[i if starred is None else min(i, starred)].name for i in range(len(example.args))]
    if unknown := set(further) - {*names, *example.kwargs}:
        raise ValueError(f"dynamic_axes names {', '.join(sorted(unknown))}, which are no example inputs")

    def axes(name: str, value: Any) -> dict[int, Any] | None:
        wanted = {*(() if not dynamic_batch else (0,)), *further.get(name, ())}
        if value is None or not value.ndim:
            return None
        if not all(0 <= axis < value.ndim for axis in wanted):
            raise ValueError(f"dynamic_axes of {name}: {value.ndim} axes, so 0 to {value.ndim - 1}")
        return dict.fromkeys(sorted(wanted), dynamic) or None

    by_name = {name: axes(name, value) for name, value in example.kwargs.items()}
    shapes = tuple(axes(name, value) for name, value in zip(names, example.args, strict=True))
    if not any((*by_name.values(), *shapes)):
        return None
    if by_name:
        return by_name
    return shapes if starred is None else (*shapes[:starred], shapes[starred:])


def _proto_of_program(program: Any, module: Any) -> Any:
    """Return the ModelProto of an exported program; large ones go through a temporary folder."""
    if sum(p.numel() * p.element_size() for p in module.parameters()) < _LARGE_BYTES:
        return program.model_proto
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        program.save(str(path), external_data=True)
        model = parse_model(path.read_bytes(), path)
        attach_external_data(model, path.parent)
        return model


def _cause(error: BaseException) -> str:
    """Return a one-line reason: the innermost cause says most."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    shown = " ".join(lines[:2]) if lines and lines[0].endswith(":") else "".join(lines[:1])
    return f"{type(error).__name__}: {shown or 'no message'}"


def _runner(module: Any, example: _Example, input_names: tuple[str, ...]) -> Runner:
    """Return a function that computes the outputs with the module itself."""
    torch = require_package("torch")

    def run(feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        check_feed_names(feeds, input_names)
        tensors = [
            torch.from_numpy(np.array(feeds[name])).to(device=like.device, dtype=like.dtype)
            for name, like in zip(input_names, example.tensors, strict=True)
        ]
        call = example.with_tensors(tensors)
        with evaluation_mode(module), torch.inference_mode():
            outputs = module(*call.args, **call.kwargs)
        leaves = torch.utils._pytree.tree_leaves(outputs)
        return [array_of_torch("output", leaf) for leaf in leaves if is_torch_tensor(leaf)]

    return run


def _module_tensors(module: Any) -> dict[str, np.ndarray]:
    """Return parameters and buffers by name; a tied one by each of its names."""
    named: dict[str, np.ndarray] = {}
    for entries in (
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    ):
        for name, tensor in entries:
            with contextlib.suppress(ConversionError):
                named[name] = array_of_torch(name, tensor)
    return named


def _compare_export(model: Any, run: Callable[..., Any], feeds: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Check that the exported graph computes what the module computes on the example."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return ("the exported graph was not compared with the module: onnxruntime is not installed",)
    if model.ByteSize() > _LARGE_BYTES:
        return ("the exported graph was not compared with the module: it is too large",)
    expected = run(feeds)
    actual = run_session(open_session(model.SerializeToString()), feeds)
    difference = max(map(relative_difference, expected, actual), default=0.0)
    if len(expected) == len(actual) and difference <= _EXPORT_TOLERANCE:
        return ()
    if max(map(relative_difference, expected, run(feeds)), default=0.0) > 0:
        return ("the module gives different outputs for the same inputs, so its export could not be checked",)
    raise ConversionError(
        f"PyTorch exported a graph with other outputs than the module (relative difference {difference:.1e})"
    )


def _binding_notes(slim: SlimGraph, named: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Say which entries of the state dict the file does not carry as they were."""
    groups = {
        "made by the exporter, stored under its names": [n for n in slim.tensors if n not in named],
        "changed by the exporter (batch norm folded)": slim.changed,
        "stored once": [f"{name} = {stored}" for name, stored in slim.equal.items()],
        "not stored, the graph does not need them": slim.unused,
    }
    return tuple(f"{words}: {', '.join(names)}" for words, names in groups.items() if names)
