"""Compare an exported model with a run on the decoded weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nqconvert.graphs.onnx_tensor import ONNX_OF_DTYPE
from nqconvert.graphs.ort_session import ExternalValue, open_session, relative_difference, run_session
from nqformat.errors import ConversionError
from nqformat.optional_packages import require_package
from nqruntime.graph import GraphValue
from nqruntime.made_up import made_up_feeds

from .model_file import declare_external
from .opset import with_tensors_as_inputs
from .pending import known_dtype
from .restore import StoredModel, TensorFile

TOLERANCE = 1e-5
_BATCH = 2
_OPEN_AXES = (2, 8, 32, 64, 224, 512)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceRun:
    """Inputs and the outputs that the stored graph gives for them on the decoded weights."""

    feeds: dict[str, np.ndarray]
    outputs: list[np.ndarray]


def check_exported(path: Path, stored: StoredModel) -> tuple[str, ...]:
    """Run ONNX's checker, with shape inference, on an exported file.

    Returns
    -------
    tuple of str
        What the checker finds in the stored graph already: runtimes may accept it all the same.

    Raises
    ------
    ConversionError
        If the checker refuses the file but not the graph it was made of.
    """
    fault = _checker_fault(str(path))
    if fault is None:
        return ()
    own_fault = _checker_fault(with_tensors_as_inputs(stored.model, stored.tensors))
    if own_fault is None:
        raise ConversionError(f"the exported model is not valid ONNX: {fault}")
    return (f"ONNX's checker does not accept the original graph: {own_fault}",)


def _checker_fault(model: Any) -> str | None:
    """Return what ONNX's checker says against a model, or None."""
    onnx = require_package("onnx")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return _first_line(error)
    return None


def reference_run(
    file: TensorFile,
    stored: StoredModel,
    feeds: Mapping[str, np.ndarray] | np.ndarray | None,
    *,
    changed: Mapping[str, np.ndarray] | None = None,
) -> ReferenceRun:
    """Run the stored graph on the decoded weights.

    Parameters
    ----------
    file : TensorFile
    stored : StoredModel
    feeds : mapping of str to ndarray, or ndarray, optional
        Inputs by name, or the only one; without them random ones are made, open axes growing until the
        model runs.
    changed : mapping of str to ndarray, optional
        Other values for some tensors.

    Raises
    ------
    ConversionError
        If the model does not run on the inputs.
    """
    require_package("onnxruntime")
    try:
        session = _reference_session(file, stored, changed or {})
    except ConversionError as error:
        raise ConversionError(f"{error}; without verification it can be exported unseen") from error
    if feeds is not None:
        named = _named_feeds(feeds, [value.name for value in session.get_inputs()])
        return ReferenceRun(feeds=named, outputs=run_session(session, named))
    failure: ConversionError | None = None
    for trial in _random_trials(stored.model):
        try:
            return ReferenceRun(feeds=trial, outputs=run_session(session, trial))
        except ConversionError as error:
            failure = error
    raise ConversionError(
        f"the model does not run on random inputs, give some as feeds ({failure})"
    ) from failure


def _named_feeds(feeds: Mapping[str, np.ndarray] | np.ndarray, names: list[str]) -> dict[str, np.ndarray]:
    """Return inputs by name."""
    if isinstance(feeds, Mapping):
        return dict(feeds)
    if len(names) != 1:
        raise ValueError(f"the model has {len(names)} inputs ({', '.join(names)}); give them by name")
    return {names[0]: feeds}


def run_exported(path: Path, reference: ReferenceRun) -> list[np.ndarray]:
    """Run an exported file on the inputs of a reference run; ConversionError if it does not load or run."""
    return run_session(open_session(path), reference.feeds)


def output_difference(outputs: list[np.ndarray], reference: ReferenceRun) -> float:
    """Return the largest relative difference of some outputs from those of a reference run."""
    if len(outputs) != len(reference.outputs):
        raise ConversionError(
            f"the exported model has {len(outputs)} outputs, the stored one {len(reference.outputs)}"
        )
    return max(map(relative_difference, reference.outputs, outputs), default=0.0)


def check_outputs(outputs: list[np.ndarray], reference: ReferenceRun) -> None:
    """Raise ConversionError if the outputs of an exported model are off by more than 1e-5."""
    difference = output_difference(outputs, reference)
    if not difference <= TOLERANCE:
        raise ConversionError(
            f"the exported model's outputs differ from those of the decoded weights by {difference:.1e}, "
            f"allowed {TOLERANCE:.0e}"
        )


def random_feeds(model: Any, *, open_axis: int) -> dict[str, np.ndarray]:
    """Return reproducible inputs; open axes get `open_axis` elements, those of the batch two.

    Raises
    ------
    ConversionError
        If an input is not a tensor of known rank and element type.
    """
    feeds = made_up_feeds(
        [_declared(value) for value in model.graph.input],
        {tensor.name for tensor in model.graph.initializer},
        batch=_BATCH,
        open_size=open_axis,
    )
    if feeds is None:
        raise ConversionError("no random values can be made for the inputs as declared, give feeds")
    return feeds


def _random_trials(model: Any) -> Iterator[dict[str, np.ndarray]]:
    """Yield random inputs with larger and larger open axes; only one if there are none."""
    previous: list[tuple[int, ...]] = []
    for open_axis in _OPEN_AXES:
        feeds = random_feeds(model, open_axis=open_axis)
        shapes = [array.shape for array in feeds.values()]
        if shapes != previous:
            yield feeds
        previous = shapes


def _declared(value: Any) -> GraphValue:
    """Return a declared input of a model as the runtime reads it."""
    kind = value.type.tensor_type
    has_shape = value.type.HasField("tensor_type") and kind.HasField("shape")
    sizes = [d.dim_value if d.HasField("dim_value") else (d.dim_param or None) for d in kind.shape.dim]
    return GraphValue(
        name=value.name,
        element_number=kind.elem_type,
        shape=tuple(sizes) if has_shape else None,
        is_tensor=value.type.HasField("tensor_type"),
    )


def _reference_session(file: TensorFile, stored: StoredModel, changed: Mapping[str, np.ndarray]) -> Any:
    """Open the stored graph with its tensors handed over as arrays."""
    model = type(stored.model)()
    model.CopyFrom(stored.model)
    external: dict[str, ExternalValue] = {}
    for info in stored.tensors:
        proto = model.graph.initializer.add()
        proto.name = info.name
        proto.data_type = ONNX_OF_DTYPE[known_dtype(info)]
        proto.dims.extend(info.shape)
        bits = np.ascontiguousarray(
            changed[info.name] if info.name in changed else file.get_tensor(info.name)
        )
        if bits.size <= 1:
            proto.raw_data = bits.tobytes()
            continue
        declare_external(proto, "tensors", 0, bits.nbytes)
        external[info.name] = ExternalValue(bits=bits, data_type=proto.data_type)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_session(model.SerializeToString(), external=external)


def _first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
